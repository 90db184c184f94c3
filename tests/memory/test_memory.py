"""Memories against plain dictionaries: what each sequence holds, what its tokens see, and the bytes behind them, whatever is
placed, removed, copied, shifted, dumped or restored in between."""

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from memory_kinds import N_CTX, N_SEQ, NEEDS, caches, first_seen, memory_of, numbers, rows, state, write

from pyggml.errors import ComputeError, ContextError, StateError
from pyggml.memory import kv, kv_tensors
from pyggml.memory.base import Checkpoint
from pyggml.memory.cells import FREE, Cells
from pyggml.memory.kv import KVCache
from pyggml.memory.layered import Layered
from pyggml.memory.recurrent import RecurrentState
from pyggml.memory.window import Window
from pyggml.runtime.batch import Batch, split

Tokens = dict[int, float]
"""Position -> the token's number."""


@pytest.fixture(autouse=True)
def few_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding to fewer cells than usual, so that windows are full soon."""
    for module in (kv, kv_tensors):
        monkeypatch.setattr(module, "CELL_STEP", 4)


class Machine(RuleBasedStateMachine):
    """`held[seq]`: what a sequence holds. A token's number never repeats.
    `lost[seq]`: a window may lack what comes before this position, which no token was to see any more when it was given up.
    All the rest that the next token sees must be there."""

    kind = "all"

    @initialize(transposed_v=st.booleans())
    def start(self, transposed_v: bool) -> None:
        self.memory = memory_of(self.kind, transposed_v)
        self.held: list[Tokens] = [{} for _ in range(N_SEQ)]
        self.lost = [0] * N_SEQ
        self.points: list[tuple[int, int, Checkpoint | None, Tokens, int]] = []
        self.number = 0
        windows = [part.window for part in caches(self.memory) if part.window is not None]
        self.window = windows[0] if windows else None
        self.has_states = any(isinstance(part, RecurrentState) for part in self.memory.parts)
        assert self.memory.rewinds == (not self.has_states and (self.window is None or self.kind.startswith("full")))

    def end(self, seq: int) -> int:
        return max(self.held[seq], default=-1) + 1

    def begins(self, end: int) -> int:
        """The first position that must be there of a sequence with this end: what the next token sees, and the last."""
        if self.window is None or self.kind.startswith("full"):
            return 0
        return max(0, min(first_seen(self.window, end), end - 1))

    def no_room_for(self, n: int) -> bool:
        """Whether sequences that share cells might find none for so many further tokens."""
        return sum(map(len, self.held)) + n > N_CTX - 24

    @rule(sizes=st.dictionaries(st.integers(0, N_SEQ - 1), st.integers(1, 11), min_size=1), fails=st.booleans())
    def decode(self, sizes: dict[int, int], fails: bool) -> None:
        """A batch of some sequences; where the run fails, nothing has changed."""
        if self.no_room_for(sum(sizes.values())):
            return
        batches = []
        for seq, n in sizes.items():
            new = np.arange(self.number + 1, self.number + n + 1)
            self.number += n
            batches.append(Batch.of(new.astype(np.int32), self.end(seq), seq))
        for ub, _ in split(Batch.join(batches), 8, self.memory.n_streams, N_SEQ):
            placement = self.memory.place(ub)
            assert placement is not None
            self.sees(ub, placement)
            if fails:
                return
            self.memory.prepare(placement)
            write(self.memory, ub, placement)
            self.memory.commit(placement)
            for seq, pos, number in zip(ub.seq.tolist(), ub.pos.tolist(), ub.tokens.tolist(), strict=True):
                if seq >= 0:
                    self.held[seq][pos] = number
                    self.lost[seq] = max(self.lost[seq], self.begins(pos + 1))

    def sees(self, ub: Any, placement: Any) -> None:
        """The mask shows each token its own sequence's cells, no later than itself, within the window, and no others."""
        for part, placed in zip(self.memory.parts, placement.parts, strict=True):
            if not isinstance(part, KVCache):
                continue
            mask, each = part.mask(placed).reshape(ub.n, -1), ub.n // ub.n_seqs
            there = numbers(part)
            for i in range(ub.n):
                stream = ub.first + i // each if part.n_streams > 1 else 0
                seq, pos = int(ub.seq[i]), int(ub.pos[i])
                cells = np.flatnonzero(mask[i] == 0)
                if seq < 0:
                    assert cells.tolist() == [placed.cells[i]]
                    continue
                low = 0 if part.window is None else first_seen(part.window, pos)
                lost = 0 if part.window is None else self.lost[seq]
                new = [c for c in cells.tolist() if self.fresh(ub, placed, seq, c)]
                old = {int(there[stream, c]) for c in cells.tolist() if c not in new}
                assert old <= {number for p, number in self.held[seq].items() if low <= p <= pos}
                assert old >= {number for p, number in self.held[seq].items() if max(low, lost) <= p <= pos}
                assert len(new) == int(((ub.seq == seq) & (ub.pos <= pos) & (ub.pos >= low)).sum())

    @staticmethod
    def fresh(ub: Any, placed: Any, seq: int, cell: int) -> bool:
        return any(int(c) == cell and s == seq for c, s in zip(placed.cells, ub.seq, strict=True))

    @rule(seq=st.integers(0, N_SEQ - 1), p0=st.integers(0, 30), n=st.one_of(st.none(), st.integers(0, 12)))
    def remove(self, seq: int, p0: int, n: int | None) -> None:
        p1 = None if n is None else p0 + n
        could, end = self.memory.can_remove(seq, p0, p1), self.end(seq)
        assert self.memory.remove(seq, p0, p1) == could
        last = p1 is None or p1 >= end
        if not could:
            assert 0 <= p0 < end and not self.memory.rewinds and (self.has_states or (last and p0 > 0))
            return
        self.forget(seq, p0, p1)

    def forget(self, seq: int, p0: int, p1: int | None) -> None:
        last = p1 is None or p1 >= self.end(seq)
        if last and p0 < self.end(seq):  # what the next token sees is there
            self.lost[seq] = min(self.lost[seq], self.begins(p0))
        self.held[seq] = {p: t for p, t in self.held[seq].items() if p < p0 or (p1 is not None and p >= p1)}
        if not self.held[seq]:
            self.lost[seq] = 0

    @rule(src=st.integers(0, N_SEQ - 1), dst=st.integers(0, N_SEQ - 1), p1=st.one_of(st.none(), st.integers(1, 16)))
    def copy(self, src: int, dst: int, p1: int | None) -> None:
        """All of it or its beginning, as for a shared prompt."""
        if src == dst or self.no_room_for(self.end(src)):
            return
        why, part = self.memory.why_not_copy(src, 0, p1), p1 is not None and p1 < self.end(src)
        assert not why or (part and not self.memory.rewinds)
        if why:
            with pytest.raises(ContextError, match="cannot be copied"):
                self.memory.copy(src, dst, 0, p1)
            return
        self.memory.remove(dst)
        self.memory.copy(src, dst, 0, p1)
        self.held[dst] = {p: t for p, t in self.held[src].items() if p1 is None or p < p1}
        self.lost[dst] = min(self.lost[src], self.begins(p1 or 0)) if part else self.lost[src]

    @rule(seq=st.integers(0, N_SEQ - 1))
    def keep(self, seq: int) -> None:
        self.memory.keep(seq)
        self.held = [held if s == seq else {} for s, held in enumerate(self.held)]
        self.lost = [lost if s == seq else 0 for s, lost in enumerate(self.lost)]

    @rule(seq=st.integers(0, N_SEQ - 1), p0=st.integers(0, 10), n=st.integers(1, 4))
    def forget_and_shift(self, seq: int, p0: int, n: int) -> None:
        """A context shift: tokens [p0, p0 + n) go, those behind move up."""
        if p0 + n >= self.end(seq):
            return
        moved = {t for p, t in self.held[seq].items() if p >= p0 + n}
        others = {t for s, held in enumerate(self.held) if s != seq for t in held.values()}
        why = self.memory.why_not_shift(seq, p0 + n, None, -n)
        assert ("recurrent state" in self.memory.why_no_shift) == self.has_states
        assert bool(why) if self.has_states else not why or (moved & others and self.kind.endswith("unified"))
        if why:
            with pytest.raises(ContextError, match=r"another one shares|recurrent state"):
                self.memory.shift(seq, p0 + n, None, -n)
            return
        assert self.memory.remove(seq, p0, p0 + n)
        self.memory.shift(seq, p0 + n, None, -n)
        self.held[seq] = {p if p < p0 else p - n: t for p, t in self.held[seq].items() if not p0 <= p < p0 + n}
        self.lost[seq] = min(self.lost[seq], max(p0, self.lost[seq] - n))

    @rule(seq=st.integers(0, N_SEQ - 1))
    def checkpoint(self, seq: int) -> None:
        end, point = self.end(seq), self.memory.checkpoint(seq)
        assert (point is None) == self.memory.rewinds and self.memory.end(seq) == end
        self.points.append((seq, end, point, dict(self.held[seq]), max(self.lost[seq], self.begins(end))))
        del self.points[:-4]

    @precondition(lambda self: self.points)
    @rule(data=st.data())
    def restore(self, data: Any) -> None:
        seq, end, point, held, lost = data.draw(st.sampled_from(self.points))
        if held != {p: t for p, t in self.held[seq].items() if p < end}:
            return  # what came between has changed the tokens before: nobody goes back over that
        assert self.memory.restore(seq, point, end)
        self.held[seq], self.lost[seq] = dict(held), lost if held else 0

    @rule(src=st.integers(0, N_SEQ - 1), dst=st.integers(0, N_SEQ - 1))
    def dump_and_load(self, src: int, dst: int) -> None:
        if self.no_room_for(self.end(src)):
            return
        self.memory.load(dst, self.memory.dump(src))
        self.held[dst], self.lost[dst] = dict(self.held[src]), max(self.lost[src], self.begins(self.end(src)))

    @rule()
    def clear(self) -> None:
        self.memory.clear()
        self.held, self.lost = [{} for _ in range(N_SEQ)], [0] * N_SEQ

    @invariant()
    def holds_what_it_should(self) -> None:
        if not hasattr(self, "memory"):
            return
        for seq, held in enumerate(self.held):
            assert self.memory.end(seq) == self.end(seq)
            for part in self.memory.parts:
                if isinstance(part, RecurrentState):
                    if held:
                        assert state(part, seq).tolist() == [sum(held.values())] * 3
                    continue
                assert isinstance(part, KVCache)
                stream, cells = part.cells.stream_of(seq), part.cells.of(seq)
                pos = part.cells.pos[stream, cells].tolist()
                if part.window is None:
                    assert pos == sorted(held)
                else:
                    must = max(self.lost[seq], self.begins(self.end(seq)))
                    assert set(pos) <= set(held) and set(pos) >= {p for p in held if p >= must}
                assert numbers(part)[stream, cells].tolist() == [held[p] for p in pos]
                keys = rows(part, part.k[0])[stream, cells]
                assert keys[:, 1].tolist() == pos  # the position when it was computed, and all turns since
        for part in caches(self.memory):
            there = part.cells.pos != FREE
            assert (there.sum(axis=1) == part.cells.used).all()
            assert all(not there[s, part.cells.high[s] :].any() for s in range(part.n_streams))


def machine(kind: str) -> type[Machine]:
    return type("M", (Machine,), {"kind": kind})


KINDS = [*NEEDS, *(f"{name} unified" for name in NEEDS)]
SETTINGS = settings(
    deadline=None, max_examples=25, stateful_step_count=25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_as_a_dictionary(kind: str) -> None:
    run_state_machine_as_test(machine(kind), settings=SETTINGS)


def test_a_shared_token_that_a_window_keeps_for_another_hides_no_gap() -> None:
    """Sequence 0 has lost token 1 and had token 0, which sequence 2 still sees: nobody is to go back to 2."""
    state: Any = machine("window unified")()
    state.start(transposed_v=False)
    state.decode(sizes={0: 1}, fails=False)
    state.copy(src=0, dst=2, p1=None)
    state.decode(sizes={0: 5, 1: 8, 2: 11}, fails=False)
    for src in range(N_SEQ):
        state.holds_what_it_should()
        for p1 in range(1, state.end(src)):
            state.copy(src=src, dst=1, p1=p1)
            state.holds_what_it_should()


def _own_cells_alone(self: Cells, seq: int, n: int | None = None) -> Any:
    return np.not_equal(self.pos[self.stream_of(seq), : int(self.high[0]) if n is None else n], FREE)


GONE = KVCache._gone


def _gives_up_one_more(self: KVCache, stream: int, coming: dict[int, int]) -> Any:
    return GONE(self, stream, {seq: coming.get(seq, self.end(seq)) + 1 for seq in range(self.n_seq_max)})


def _first_part_alone(self: Layered, seq: int, p0: int, p1: int | None, by: int) -> None:
    self.parts[0].shift(seq, p0, p1, by)


def _no_reason(self: Any, *args: Any) -> str:
    return ""


def _always(self: Any, *args: Any) -> bool:
    return True


MUTANTS: dict[str, tuple[str, Any, str, Any]] = {
    "a window can always go back": ("window", KVCache, "can_remove", _always),
    "a window is a token longer": ("window", Window, "first", lambda self, pos: pos - self.n),
    "a window is a token shorter": ("both", Window, "first", lambda self, pos: pos - self.n + 2),
    "a chunked window slides": ("chunked", Window, "first", lambda self, pos: pos - self.n + 1),
    "a window gives up a token that is still seen": ("window", KVCache, "_gone", _gives_up_one_more),
    "a part of a window is copied that lacks what is seen": ("both", KVCache, "why_not_copy", _no_reason),
    "windows do not shift": ("both", Layered, "shift", _first_part_alone),
    "keys that are shared get other positions": ("both unified", KVCache, "why_not_shift", _no_reason),
    "parts shift one after the other": ("hybrid", Layered, "why_not_shift", _no_reason),
    "a state is copied that stands for more tokens": ("hybrid", RecurrentState, "why_not_copy", _no_reason),
    "sequences that share cells see each other": ("all unified", Cells, "mine", _own_cells_alone),
    "a state is not zero when a sequence begins": ("states", RecurrentState, "prepare", lambda self, placement: None),
    "cells move and keys are not turned": ("all", KVCache, "_run", lambda self, graph, inputs: None),
    "a state can lose its end": ("states", RecurrentState, "can_remove", _always),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, owner, method, wrong = MUTANTS[name]
    monkeypatch.setattr(owner, method, wrong)
    with pytest.raises((AssertionError, ExceptionGroup)) as caught:
        run_state_machine_as_test(
            machine(kind),
            settings=settings(
                SETTINGS,
                database=None,
                derandomize=True,
                max_examples=2000,
                stateful_step_count=20,
                phases=[Phase.generate],
            ),
        )
    failures = caught.value.exceptions if isinstance(caught.value, ExceptionGroup) else [caught.value]
    assert any(isinstance(failure, AssertionError) for failure in failures), failures


def test_a_sequence_of_another_memory_is_refused() -> None:
    memory, other = memory_of("all", False), memory_of("both", False)
    ((ub, _),) = split(Batch.of([1, 2], 0, 1), 8, 3, 3)
    placement = memory.place(ub)
    write(memory, ub, placement)
    memory.commit(placement)
    data = memory.dump(1)
    for bad in (other.dump(1), data[:-1], data + b"x", b""):
        with pytest.raises(StateError, match=r"sequence|kinds"):
            memory.load(1, bad)
        assert memory.end(1) == 0
    positions = np.array([0, 1], "<i4").tobytes()
    assert data.count(positions) == 1
    for i, number, least in ((1, 0, 0), (0, -1, -1)):  # of token number i; it must be above `least`
        wrong = np.array([0, 1], "<i4")
        wrong[i] = number
        with pytest.raises(
            StateError, match=f"position {number} of token {i} of a saved sequence must be above {least}"
        ):
            memory.load(1, data.replace(positions, wrong.tobytes()))
    memory.load(2, data)
    assert memory.end(2) == 2


def test_no_room() -> None:
    for kind in ("all", "all unified"):
        memory = memory_of(kind, False, n_ubatch=512)
        streams = memory.n_streams
        ((ub, _),) = split(Batch.of([1] * 256, 0), 512, streams, N_SEQ)
        memory.commit(memory.place(ub))
        ((more, _),) = split(Batch.of([1], 256), 512, streams, N_SEQ)
        assert memory.place(more) is None
        ((other, _),) = split(Batch.of([1], 0, 2), 512, streams, N_SEQ)
        assert (memory.place(other) is None) == (kind == "all unified")


def test_windows_have_as_many_cells_as_llama_cpp_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """llama-kv-cache-iswa.cpp: size_swa."""
    for module in (kv, kv_tensors):
        monkeypatch.setattr(module, "CELL_STEP", 2)
    for kind, cells in (("window", 5 + 8), ("window unified", 3 * 5 + 8), ("both", 5 + 8), ("full", N_CTX)):
        (window,) = [part for part in caches(memory_of(kind, False)) if part.window is not None]
        assert window.n_cells == cells + cells % 2
        others = [part for part in caches(memory_of(kind, False)) if part.window is None]
        assert all(part.n_cells == N_CTX for part in others)


def filled(kind: str) -> Layered:
    """Sequence 0 has thirty tokens."""
    memory = memory_of(kind, False)
    for ub, _ in split(Batch.of(range(1, 31), 0), 8, memory.n_streams, N_SEQ):
        placement = memory.place(ub)
        memory.prepare(placement)
        write(memory, ub, placement)
        memory.commit(placement)
    return memory


def test_a_device_that_fails_leaves_all_parts_with_the_same_tokens() -> None:
    def fails(graph: Any, inputs: Any) -> None:
        raise ComputeError("the device is gone")

    for kind, end in (("both", 0), ("full", 2)):
        memory = filled(kind)
        caches(memory)[1].compute = fails
        assert memory.remove(0, 2, 4)
        with pytest.raises(ComputeError):
            memory.shift(0, 4, None, -2)
        assert {part.end(0) for part in memory.parts} == {end}, kind
        memory = filled(kind)
        caches(memory)[1].compute = fails
        with pytest.raises(ComputeError):
            memory.copy(0, 1)
        assert {part.end(1) for part in memory.parts} == {0} and {part.end(0) for part in memory.parts} == {30}
