"""What a context remembers of its sequences, as an interface: keys and values, windows of them, recurrent states.

Owns what every kind of memory promises; knows no kind. Sequences are numbered from 0, positions count a sequence's tokens
from 0; a range of positions [p0, p1) with p1 = None has no end (llama.cpp: llama_memory_i and llama_memory_seq_*).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyggml.graph import Graph
from pyggml.memory.ubatch import Ubatch
from pyggml.tensor import Tensor

Compute = Callable[[Graph, "Sequence[tuple[Tensor, NDArray[Any]]]"], None]
"""Runs a graph with these inputs, at once. Raises ComputeError, DeviceError."""

Bytes = bytes | NDArray[np.uint8]


class Placement:
    """Where a micro-batch will lie: what `Memory.place` found and `commit` makes true. Each kind has its own."""


@dataclass(frozen=True)
class Checkpoint:
    """A sequence as it was when its next token had position `end`: what `restore` needs to go back there."""

    end: int
    data: Any


class Memory(ABC):
    """Nothing changes before `commit`: a micro-batch that fails has left no trace.

    n_seq_max   sequences 0 to n_seq_max - 1
    n_streams   sequences that lie in a stretch of cells of their own; 1: all of them share one
    """

    n_seq_max: int
    n_streams: int

    @abstractmethod
    def place(self, ub: Ubatch) -> Placement | None:
        """Where these tokens can lie; None: there is no room for them."""

    def prepare(self, placement: Placement) -> None:  # noqa: B027, most kinds have nothing to do
        """Before the graph of this placement runs."""

    @abstractmethod
    def commit(self, placement: Placement) -> None:
        """The tokens are there now."""

    @abstractmethod
    def shape(self, placement: Placement) -> Hashable:
        """What of a placement a graph depends on: micro-batches of one size and one shape share a graph."""

    @abstractmethod
    def begin(self, seq: int) -> int:
        """The first position of a sequence that is still there; 0 when there is none."""

    @abstractmethod
    def end(self, seq: int) -> int:
        """The position that its next token will have."""

    @abstractmethod
    def remove(self, seq: int, p0: int = 0, p1: int | None = None) -> bool:
        """Forget tokens [p0, p1) of a sequence. False, and nothing has changed: this memory cannot forget only these."""

    @abstractmethod
    def can_remove(self, seq: int, p0: int = 0, p1: int | None = None) -> bool:
        """Whether `remove` would."""

    @property
    @abstractmethod
    def rewinds(self) -> bool:
        """Whether a sequence can always go back to any of its tokens: who wants to needs no checkpoints."""

    @property
    @abstractmethod
    def why_no_shift(self) -> str:
        """Why no sequence can forget tokens in its midst, so that those behind them move up; empty: it can
        (llama_memory_can_shift)."""

    @abstractmethod
    def copy(self, src: int, dst: int, p0: int = 0, p1: int | None = None) -> None:
        """Let `dst` have the tokens [p0, p1) of `src` too; what it had there is forgotten. Raises ContextError: nothing has
        changed where `why_not_copy` says so, and where there was no room `dst` has nothing."""

    @abstractmethod
    def why_not_copy(self, src: int, p0: int = 0, p1: int | None = None) -> str:
        """Why these tokens cannot be copied; empty: they can be, where there is room."""

    @abstractmethod
    def keep(self, seq: int) -> None:
        """Forget all other sequences."""

    @abstractmethod
    def shift(self, seq: int, p0: int, p1: int | None, by: int) -> None:
        """Add `by` to the positions of tokens [p0, p1). Raises ContextError with what `why_not_shift` says, and ComputeError;
        a shift that fails on the way forgets these tokens, or all of the sequence."""

    @abstractmethod
    def why_not_shift(self, seq: int, p0: int, p1: int | None, by: int) -> str:
        """Why these tokens cannot have other positions; empty: they can."""

    @abstractmethod
    def clear(self) -> None:
        """Forget all sequences."""

    @abstractmethod
    def checkpoint(self, seq: int) -> Checkpoint | None:
        """What is needed to come back to now; None: `remove` always can."""

    @abstractmethod
    def restore(self, seq: int, checkpoint: Checkpoint | None, end: int) -> bool:
        """Let the sequence end at `end` again, where it was when the checkpoint was made. False: it cannot."""

    def dump(self, seq: int) -> bytes:
        """All that is kept of a sequence and needed to go on with it."""
        return b"".join(self.pieces(seq))

    @abstractmethod
    def pieces(self, seq: int) -> Iterator[bytes]:
        """What `dump` gives, piece by piece."""

    @abstractmethod
    def dump_size(self, seq: int) -> int:
        """Bytes that `dump` gives."""

    @abstractmethod
    def load(self, seq: int, data: Bytes, end: int | None = None) -> None:
        """Let `seq` be what was dumped by a memory of the same form, or its tokens before position `end` where `loads` says
        that they are there. Raises StateError, ContextError where there is no room; the sequence is empty then."""

    @abstractmethod
    def loads(self, data: Bytes, end: int) -> bool:
        """Whether what was dumped has all that a sequence which ends here must have. Raises StateError for what no memory of
        this form has dumped."""

    @abstractmethod
    def free(self) -> None:
        """Give the memory back; twice does nothing."""

    @property
    @abstractmethod
    def n_bytes(self) -> int:
        """Bytes on all devices."""
