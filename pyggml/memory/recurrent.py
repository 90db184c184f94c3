"""Recurrent states: a row of numbers a layer and sequence, the same however long the sequence is.

Owns which row is whose, and the nodes that read and write rows. A state holds all tokens so far and cannot go back: who may
want to go back makes checkpoints (as llama-memory-recurrent.cpp, where a state lies in a cell; here sequence s has row s).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyggml import ops
from pyggml.backend.base import Buffer
from pyggml.dtypes import GGMLType
from pyggml.errors import ContextError, StateError
from pyggml.memory.base import Bytes, Checkpoint, Memory, Placement
from pyggml.memory.placed import Placed
from pyggml.memory.ubatch import NOBODY, Ubatch
from pyggml.tensor import Tensor


class StateLayer(NamedTuple):
    """What a layer wants to be kept: names of states, and their numbers of elements (F32)."""

    il: int
    sizes: dict[str, int]


@dataclass(frozen=True)
class StatePlacement(Placement):
    """`slots` (n_seqs,) i32: the row of each sequence; `ends`: what the sequences' ends will be; `begins`: rows that are
    to be zero before."""

    slots: NDArray[np.int32]
    ends: tuple[tuple[int, int], ...]
    begins: tuple[int, ...]


class RecurrentState(Placed, Memory):
    """Rows 0 to n_seq_max - 1 are the sequences'; one more takes what rows that only fill up leave behind."""

    def __init__(self, layers: Sequence[StateLayer], n_seq_max: int = 1) -> None:
        self.layers = list(layers)
        self.n_seq_max = self.n_streams = n_seq_max
        self.states = [
            {name: Tensor(GGMLType.F32, (n, n_seq_max + 1), name=f"{name}_l{la.il}") for name, n in la.sizes.items()}
            for la in layers
        ]
        self.ends = [0] * n_seq_max
        self.buffers: list[Buffer] = []

    def tensors(self, i: int) -> list[Tensor]:
        return list(self.states[i].values())

    # ---- nodes of layer number i

    def read(self, i: int, name: str, slots: Tensor) -> Tensor:
        """(elements, n_seqs)"""
        return ops.get_rows(self.states[i][name], slots)

    def write(self, i: int, name: str, x: Tensor, slots: Tensor) -> Tensor:
        """Store x (elements, n_seqs)."""
        return ops.set_rows(self.states[i][name], x, slots)

    def inputs(self, new: Callable[..., Tensor], n_seqs: int, part: int = 0) -> Tensor:
        """The rows, made by `new(name, dtype, *ne, fill=...)`."""

        def fill(ub: Ubatch, placement: Any) -> NDArray[np.int32]:
            slots: NDArray[np.int32] = placement.parts[part].slots
            return slots

        return new("state_slots", GGMLType.I32, n_seqs, fill=fill)

    # ---- sequences

    def place(self, ub: Ubatch) -> StatePlacement | None:
        each = ub.n // ub.n_seqs
        slots = ub.seq[::each].copy()
        assert (ub.seq.reshape(ub.n_seqs, each) == slots[:, None]).all(), "a micro-batch mixes sequences of states"
        ends = tuple((int(s), int(ub.pos[(i + 1) * each - 1]) + 1) for i, s in enumerate(slots) if s != NOBODY)
        begins = tuple(seq for seq, _ in ends if not self.ends[seq])
        slots[slots == NOBODY] = self.n_seq_max
        return StatePlacement(slots, ends, begins)

    def prepare(self, placement: Placement) -> None:
        assert isinstance(placement, StatePlacement)
        for seq in placement.begins:
            for states in self.states:
                for state in states.values():
                    assert state.buffer is not None
                    state.buffer.memset(state, 0, seq * state.nb[1], state.nb[1])

    def commit(self, placement: Placement) -> None:
        assert isinstance(placement, StatePlacement)
        for seq, end in placement.ends:
            self.ends[seq] = end

    def shape(self, placement: Placement) -> int:
        assert isinstance(placement, StatePlacement)
        return len(placement.slots)

    def begin(self, seq: int) -> int:
        """The state stands for all tokens, but none before its end can be gone back to."""
        return max(0, self.ends[seq] - 1)

    def end(self, seq: int) -> int:
        return self.ends[seq]

    def remove(self, seq: int, p0: int = 0, p1: int | None = None) -> bool:
        if not self.can_remove(seq, p0, p1):
            return False
        if p0 == 0 and (p1 is None or p1 >= self.ends[seq]):
            self.ends[seq] = 0
        return True

    def can_remove(self, seq: int, p0: int = 0, p1: int | None = None) -> bool:
        """All of the sequence, or nothing."""
        end = self.ends[seq]
        if p0 >= end or (p1 is not None and p1 <= p0):
            return True
        return p0 == 0 and (p1 is None or p1 >= end)

    def copy(self, src: int, dst: int, p0: int = 0, p1: int | None = None) -> None:
        if src == dst:
            return
        if why := self.why_not_copy(src, p0, p1):
            raise ContextError(why)
        self.load(dst, self.dump(src))

    def why_not_copy(self, src: int, p0: int = 0, p1: int | None = None) -> str:
        end = self.ends[src]
        if p0 == 0 and (p1 is None or p1 >= end):
            return ""
        return f"a recurrent state cannot be copied in part: tokens {_range(p0, p1)} of {end}"

    @property
    def rewinds(self) -> bool:
        return False

    @property
    def why_no_shift(self) -> str:
        return "a recurrent state holds all tokens of a sequence and can forget none of them"

    def keep(self, seq: int) -> None:
        self.ends = [end if s == seq else 0 for s, end in enumerate(self.ends)]

    def shift(self, seq: int, p0: int, p1: int | None, by: int) -> None:
        if why := self.why_not_shift(seq, p0, p1, by):
            raise ContextError(why)
        if p0 < self.ends[seq]:
            self.ends[seq] += by

    def why_not_shift(self, seq: int, p0: int, p1: int | None, by: int) -> str:
        end = self.ends[seq]
        if not by or p0 >= end or (p0 == 0 and (p1 is None or p1 >= end) and end + by >= 1):
            return ""
        return f"tokens {_range(p0, p1)} of a recurrent state of {end} cannot be moved by {by}"

    def clear(self) -> None:
        self.ends = [0] * self.n_seq_max

    # ---- bytes

    def checkpoint(self, seq: int) -> Checkpoint | None:
        return Checkpoint(self.ends[seq], self.dump(seq))

    def restore(self, seq: int, checkpoint: Checkpoint | None, end: int) -> bool:
        if self.ends[seq] == end:
            return True
        if not end:
            return self.remove(seq)
        if checkpoint is None or checkpoint.end != end:
            return False
        self.load(seq, checkpoint.data)
        return True

    @property
    def row(self) -> int:
        """Bytes of all states of a sequence."""
        return sum(state.nb[1] for states in self.states for state in states.values())

    def pieces(self, seq: int) -> Iterator[bytes]:
        """The end (u32), and for each layer its states."""
        yield np.array([self.ends[seq]], "<u4").tobytes()
        for states in self.states:
            for state in states.values():
                assert state.buffer is not None
                yield state.buffer.get(state, seq * state.nb[1], state.nb[1])

    def dump_size(self, seq: int) -> int:
        return 4 + self.row

    def loads(self, data: Bytes, end: int) -> bool:
        return self._saved_end(data) == end

    def _saved_end(self, data: Bytes) -> int:
        if len(data) != 4 + self.row:
            raise StateError(f"a recurrent state of {len(data)} bytes, here one has {4 + self.row}")
        return int.from_bytes(bytes(data[:4]), "little")

    def load(self, seq: int, data: Bytes, end: int | None = None) -> None:
        self.ends[seq] = 0
        saved_end, at = self._saved_end(data), 4
        if end is not None and end != saved_end:
            raise StateError(f"a recurrent state of {saved_end} tokens is none of {end}")
        for states in self.states:
            for state in states.values():
                assert state.buffer is not None
                state.buffer.set(state, data[at : at + state.nb[1]], seq * state.nb[1])
                at += state.nb[1]
        self.ends[seq] = saved_end


def _range(p0: int, p1: int | None) -> str:
    return f"from {p0} on" if p1 is None else f"[{p0}, {p1})"
