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

from pyggml.backend.reference import ReferenceDevice
from pyggml.backend.scheduler import Scheduler
from pyggml.dtypes import GGMLType
from pyggml.errors import ContextError, StateError
from pyggml.memory import MemoryOptions, Need, allocate, kv, kv_tensors, make_memory
from pyggml.memory.base import Checkpoint
from pyggml.memory.cells import FREE, Cells
from pyggml.memory.kv import KVCache
from pyggml.memory.kv_tensors import KVLayer
from pyggml.memory.layered import Layered
from pyggml.memory.recurrent import RecurrentState, StateLayer
from pyggml.runtime.batch import Batch, split

N_SEQ, N_CTX, WINDOW = 3, 256, 5
HEAD = 2
"""Elements of a key and of a value: the token's number, and its position when it was computed."""

Tokens = dict[int, float]
"""Position -> the token's number."""


@pytest.fixture(autouse=True)
def few_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding to fewer cells than usual, so that windows are full soon."""
    for module in (kv, kv_tensors):
        monkeypatch.setattr(module, "CELL_STEP", 4)


class Runner:
    """Runs the graphs that move cells, on the reference backend."""

    def __init__(self) -> None:
        self.device = ReferenceDevice()
        self.scheduler = Scheduler([self.device.open(1)])

    def __call__(self, graph: Any, inputs: Any) -> None:
        schedule = self.scheduler.schedule(graph)
        for tensor, values in inputs:
            schedule.set_input(tensor, values)
        schedule.run()


def add_turn(keys: Any, positions: Any, n_ctx: int) -> Any:
    """Stands for a rotation: position is added to each element of the key, so that a shift can be seen."""
    from pyggml import ops
    from pyggml.tensor import Tensor

    by = ops.reshape(ops.cpy(positions, Tensor(GGMLType.F32, positions.ne)), 1, 1, positions.ne[0])
    return ops.add(keys if keys.type == GGMLType.F32 else ops.cpy(keys, Tensor(GGMLType.F32, keys.ne)), by)


def memory_of(kind: str, transposed_v: bool, n_ubatch: int = 8) -> Layered:
    layer = KVLayer(0, HEAD, HEAD, 1, add_turn)
    needs = {
        "all": [Need(layer)],
        "window": [Need(layer, WINDOW)],
        "both": [Need(layer), Need(layer._replace(il=1), WINDOW)],
        "states": [Need(states=StateLayer(0, {"s": 3}))],
        "hybrid": [Need(layer), Need(states=StateLayer(1, {"s": 3}))],
    }[kind.split()[0]]
    options = MemoryOptions(
        N_CTX, n_ubatch, N_SEQ, "unified" in kind, GGMLType.F32, GGMLType.F32, transposed_v=transposed_v
    )
    memory = make_memory(needs, options)
    runner = Runner()
    allocate(memory, [runner.device] * 2, runner)
    return memory


def caches(memory: Layered) -> list[KVCache]:
    return [part for part in memory.parts if isinstance(part, KVCache)]


def rows(cache: KVCache, tensor: Any) -> np.ndarray:
    """(stream, cell, element)"""
    flat = np.frombuffer(tensor.buffer.get(tensor), np.float32)
    if cache.transposed_v and any(tensor is v for v in cache.v):
        return flat.reshape(cache.n_streams, HEAD, cache.n_cells).transpose(0, 2, 1)
    return flat.reshape(cache.n_streams, cache.n_cells, HEAD)


def write(memory: Layered, ub: Any, placement: Any) -> None:
    """What a graph would: each token's key is its number and position, its value the number alone, its sequence's state the
    sum of all numbers."""
    for part, placed in zip(memory.parts, placement.parts, strict=True):
        if isinstance(part, KVCache):
            each = ub.n // ub.n_seqs
            for i in range(ub.n):
                stream = ub.first + i // each if part.n_streams > 1 else 0
                cell = int(placed.cells[i])
                for tensor, value in ((part.k[0], (ub.tokens[i], ub.pos[i])), (part.v[0], (ub.tokens[i], 0))):
                    data = rows(part, tensor).copy()
                    data[stream, cell] = value
                    if part.transposed_v and tensor is part.v[0]:
                        data = data.transpose(0, 2, 1)
                    tensor.buffer.set(tensor, np.ascontiguousarray(data, np.float32).reshape(-1).view(np.uint8))
        else:
            assert isinstance(part, RecurrentState)
            each = ub.n // ub.n_seqs
            for i, slot in enumerate(placed.slots.tolist()):
                state = part.states[0]["s"]
                old = np.frombuffer(state.buffer.get(state, slot * 12, 12), np.float32)
                new = old + np.float32(ub.tokens[i * each : (i + 1) * each].sum())
                state.buffer.set(state, new.tobytes(), slot * 12)


class Machine(RuleBasedStateMachine):
    """`held[seq]`: what a sequence holds; windows hold at least the last WINDOW - 1 of it. A token's number never repeats."""

    kind = "all"

    @initialize(transposed_v=st.booleans())
    def start(self, transposed_v: bool) -> None:
        self.memory = memory_of(self.kind, transposed_v)
        self.held: list[Tokens] = [{} for _ in range(N_SEQ)]
        self.points: list[tuple[int, int, Checkpoint | None, Tokens]] = []
        self.number = 0

    def end(self, seq: int) -> int:
        return max(self.held[seq], default=-1) + 1

    @rule(sizes=st.dictionaries(st.integers(0, N_SEQ - 1), st.integers(1, 11), min_size=1), fails=st.booleans())
    def decode(self, sizes: dict[int, int], fails: bool) -> None:
        """A batch of some sequences; where the run fails, nothing has changed."""
        batches = []
        for seq, n in sizes.items():
            numbers = np.arange(self.number + 1, self.number + n + 1)
            self.number += n
            batches.append(Batch.of(numbers.astype(np.int32), self.end(seq), seq))
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

    def sees(self, ub: Any, placement: Any) -> None:
        """The mask shows each token its own sequence's cells, no later than itself, within the window, and no others."""
        for part, placed in zip(self.memory.parts, placement.parts, strict=True):
            if not isinstance(part, KVCache):
                continue
            mask, each = part.mask(placed).reshape(ub.n, -1), ub.n // ub.n_seqs
            numbers = rows(part, part.v[0])[..., 0]
            for i in range(ub.n):
                stream = ub.first + i // each if part.n_streams > 1 else 0
                seq, pos = int(ub.seq[i]), int(ub.pos[i])
                cells = np.flatnonzero(mask[i] == 0)
                if seq < 0:
                    assert cells.tolist() == [placed.cells[i]]
                    continue
                low = -1 if part.window is None else part.window.first(pos) - 1
                new = [c for c in cells.tolist() if self.fresh(ub, placed, seq, c)]
                old = {int(numbers[stream, c]) for c in cells.tolist() if c not in new}
                assert old == {number for p, number in self.held[seq].items() if low < p <= pos}
                assert len(new) == int(((ub.seq == seq) & (ub.pos <= pos) & (ub.pos > low)).sum())

    @staticmethod
    def fresh(ub: Any, placed: Any, seq: int, cell: int) -> bool:
        return any(int(c) == cell and s == seq for c, s in zip(placed.cells, ub.seq, strict=True))

    @rule(seq=st.integers(0, N_SEQ - 1), p0=st.integers(0, 30), n=st.one_of(st.none(), st.integers(0, 12)))
    def remove(self, seq: int, p0: int, n: int | None) -> None:
        p1 = None if n is None else p0 + n
        if p1 is not None and p1 < self.end(seq) and any(part.window for part in caches(self.memory)):
            return  # a hole in a window
        could = self.memory.can_remove(seq, p0, p1)
        assert self.memory.remove(seq, p0, p1) == could
        assert could or self.kind.split()[0] != "all"
        if could:
            self.held[seq] = {p: t for p, t in self.held[seq].items() if p < p0 or (p1 is not None and p >= p1)}
        if not could:
            assert p0 < self.end(seq) and (p0 > 0 or (p1 is not None and p1 < self.end(seq)))

    @rule(src=st.integers(0, N_SEQ - 1), dst=st.integers(0, N_SEQ - 1))
    def copy(self, src: int, dst: int) -> None:
        """All of it; as for a shared prompt."""
        self.memory.remove(dst)
        if src == dst:
            self.held[dst] = {}
            return
        self.memory.copy(src, dst)
        self.held[dst] = dict(self.held[src])

    @rule(seq=st.integers(0, N_SEQ - 1))
    def keep(self, seq: int) -> None:
        self.memory.keep(seq)
        self.held = [held if s == seq else {} for s, held in enumerate(self.held)]

    @precondition(lambda self: self.kind.split()[0] == "all")
    @rule(seq=st.integers(0, N_SEQ - 1), p0=st.integers(0, 20), n=st.integers(1, 10))
    def forget_and_shift(self, seq: int, p0: int, n: int) -> None:
        """A context shift: tokens [p0, p0 + n) go, those behind move up."""
        if p0 + n > self.end(seq):
            return
        shared = [s for s in range(N_SEQ) if s != seq and set(self.held[s].values()) & set(self.held[seq].values())]
        if shared and self.memory.n_streams == 1:
            with pytest.raises(ContextError, match="another one shares"):
                self.memory.shift(seq, 0, None, 1)
            return
        self.memory.remove(seq, p0, p0 + n)
        self.memory.shift(seq, p0 + n, None, -n)
        self.held[seq] = {p if p < p0 else p - n: t for p, t in self.held[seq].items() if not p0 <= p < p0 + n}

    @rule(seq=st.integers(0, N_SEQ - 1))
    def checkpoint(self, seq: int) -> None:
        held = dict(self.held[seq])
        self.points.append((seq, self.memory.end(seq), self.memory.checkpoint(seq), held))
        del self.points[:-4]

    @precondition(lambda self: self.points)
    @rule(data=st.data())
    def restore(self, data: Any) -> None:
        seq, end, point, held = data.draw(st.sampled_from(self.points))
        going_back = held == {p: t for p, t in self.held[seq].items() if p < end}
        if not going_back:
            return  # what came between has changed the tokens before: nobody goes back over that
        done = self.memory.restore(seq, point, end)
        assert done or end < self.end(seq)
        assert done or point is None or len(caches(self.memory)) == 0 or self.kind.split()[0] != "all"
        self.held[seq] = held if done else {}

    @rule(src=st.integers(0, N_SEQ - 1), dst=st.integers(0, N_SEQ - 1))
    def dump_and_load(self, src: int, dst: int) -> None:
        self.memory.load(dst, self.memory.dump(src))
        self.held[dst] = dict(self.held[src])

    @rule()
    def clear(self) -> None:
        self.memory.clear()
        self.held = [{} for _ in range(N_SEQ)]

    @invariant()
    def holds_what_it_should(self) -> None:
        if not hasattr(self, "memory"):
            return
        for seq, held in enumerate(self.held):
            assert self.memory.end(seq) == self.end(seq)
            for part in self.memory.parts:
                if isinstance(part, RecurrentState):
                    state = part.states[0]["s"]
                    if held:
                        found = np.frombuffer(state.buffer.get(state, seq * 12, 12), np.float32)
                        assert found.tolist() == [sum(held.values())] * 3
                    continue
                assert isinstance(part, KVCache)
                stream, cells = part.cells.stream_of(seq), part.cells.of(seq)
                pos = part.cells.pos[stream, cells].tolist()
                keys, values = (rows(part, t)[stream, cells] for t in (part.k[0], part.v[0]))
                if part.window is None:
                    assert pos == sorted(held)
                else:
                    assert set(pos) <= set(held) and set(pos) >= {
                        p for p in held if p >= part.window.first(self.end(seq))
                    }
                assert values[:, 0].tolist() == [held[p] for p in pos]
                assert keys[:, 1].tolist() == pos  # the position when it was computed, and all turns since
        for part in caches(self.memory):
            there = part.cells.pos != FREE
            assert (there.sum(axis=1) == part.cells.used).all()
            assert all(not there[s, part.cells.high[s] :].any() for s in range(part.n_streams))


def machine(kind: str) -> type[Machine]:
    return type("M", (Machine,), {"kind": kind})


KINDS = ("all", "all unified", "window", "window unified", "both", "both unified", "states", "hybrid")
SETTINGS = settings(
    deadline=None, max_examples=25, stateful_step_count=25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_as_a_dictionary(kind: str) -> None:
    run_state_machine_as_test(machine(kind), settings=SETTINGS)


def _no_window(self: KVCache, seq: int, p0: int = 0, p1: int | None = None) -> bool:
    return True


def _own_cells_alone(self: Cells, seq: int, n: int | None = None) -> Any:
    return np.not_equal(self.pos[self.stream_of(seq), : int(self.high[0]) if n is None else n], FREE)


MUTANTS: dict[str, tuple[str, Any, str, Any]] = {
    "a window can always go back": ("window", KVCache, "can_remove", _no_window),
    "sequences that share cells see each other": ("all unified", Cells, "mine", _own_cells_alone),
    "a state is not zero when a sequence begins": ("states", RecurrentState, "prepare", lambda self, placement: None),
    "cells move and keys are not turned": ("all", KVCache, "_run", lambda self, graph, inputs: None),
    "a state can lose its end": ("states", RecurrentState, "can_remove", lambda self, seq, p0=0, p1=None: True),
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
                max_examples=400,
                stateful_step_count=40,
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
