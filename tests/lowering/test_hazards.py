"""Where barriers stand, what is remembered, where work memory lies: as the plain form says, which holds each against all.

The plain forms here are the specification. Real models' graphs and random steps are lowered by both.
"""

import itertools
import operator
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from tiny_model import write_llama

import pyggml.lowering.hazards as hazards_module
import pyggml.lowering.spans as spans_module
from pyggml import ops
from pyggml.backend import cpu
from pyggml.backend.base import ASK_EVERY
from pyggml.dtypes import GGMLType
from pyggml.errors import ComputeError, WorkMemoryError
from pyggml.graph import Graph
from pyggml.lowering import cpu as builder_module
from pyggml.lowering.hazards import MAX_REMEMBERED, Hazards, Memo, Span
from pyggml.lowering.spans import Spans, first_fit
from pyggml.model.model import Model
from pyggml.runtime.context import Context
from pyggml.tensor import Flag, Tensor


def share(a: Span, b: Span) -> bool:
    return max(a[0], b[0]) < min(a[1], b[1])


class PlainHazards(Hazards):
    """The specification: lists of all that was read and written."""

    def barrier(self) -> None:
        self.reads: list[Span] = []
        self.writes: list[Span] = []
        self.pending: set[int] = set()

    def in_the_way(self, reads: Iterable[Span], writes: Iterable[Span], pieces: Iterable[int]) -> bool:
        before = [(a, b) for a in reads for b in self.writes]
        before += [(a, b) for a in writes for b in (*self.writes, *self.reads)]
        return bool(self.pending & set(pieces)) or any(share(a, b) for a, b in before)

    def add(self, reads: Iterable[Span], writes: Iterable[Span], written: Iterable[int]) -> None:
        self.reads += reads
        self.writes += writes
        self.pending |= set(written)


class PlainMemo(Memo):
    """The specification: each write is held against all that is kept."""

    def remember(self, key: Any, value: Any, source: Span) -> None:
        self._kept[key] = value, source

    def remembered(self, key: Any) -> Any:
        return self._kept.get(key, (None,))[0]

    def wrote(self, low: int, high: int) -> None:
        self._kept = {k: kept for k, kept in self._kept.items() if not share((low, high), kept[1])}


def plain_first_fit(pieces: Iterable[tuple[int, int, int]], step: int) -> tuple[list[int], int]:
    """The specification: each piece is held against all placed before it that still live."""
    placed: list[tuple[int, int, int]] = []  # last, from, to
    for size, first, last in pieces:
        at = 0
        for low, high in sorted((low, high) for until, low, high in placed if until >= first and low < high):
            if at + size <= low:
                break
            at = max(at, -(-high // step) * step)
        placed.append((last, at if size else 0, at + size if size else 0))
    return [low for _, low, _ in placed], max((-(-high // step) * step for _, _, high in placed), default=0)


class BothHazards(Hazards):
    """The specification's answers, and a failure where the other's differ."""

    def __init__(self, other: Callable[[], Hazards]) -> None:
        self.plain, self.other = PlainHazards(), other()
        self.answers: list[bool] = []

    def barrier(self) -> None:
        self.plain.barrier()
        self.other.barrier()

    def in_the_way(self, reads: Iterable[Span], writes: Iterable[Span], pieces: Iterable[int]) -> bool:
        reads, writes, pieces = list(reads), list(writes), list(pieces)
        answer = self.plain.in_the_way(reads, writes, pieces)
        assert self.other.in_the_way(reads, writes, pieces) == answer
        self.answers.append(answer)
        return answer

    def add(self, reads: Iterable[Span], writes: Iterable[Span], written: Iterable[int]) -> None:
        reads, writes, written = list(reads), list(writes), list(written)
        self.plain.add(reads, writes, written)
        self.other.add(reads, writes, written)


class BothMemo(Memo):
    def __init__(self, other: Callable[[], Memo]) -> None:
        self.plain, self.other = PlainMemo(), other()
        self.found = 0

    def remember(self, key: Any, value: Any, source: Span) -> None:
        self.plain.remember(key, value, source)
        self.other.remember(key, value, source)

    def remembered(self, key: Any) -> Any:
        answer = self.plain.remembered(key)
        assert self.other.remembered(key) is answer
        self.found += answer is not None
        return answer

    def wrote(self, low: int, high: int) -> None:
        self.plain.wrote(low, high)
        self.other.wrote(low, high)


# ---- random steps

SPAN = st.tuples(st.integers(0, 60), st.integers(0, 9)).map(lambda s: (s[0], s[0] + s[1]))
STEPS = st.lists(
    st.tuples(st.lists(SPAN, max_size=3), st.lists(SPAN, max_size=1), st.sets(st.integers(0, 3), max_size=1)),
    max_size=60,
)


def walk(hazards: Hazards, steps: list[tuple[list[Span], list[Span], set[int]]], *, barriers: bool) -> None:
    for reads, writes, pieces in steps:
        if hazards.in_the_way(reads, writes, pieces) and barriers:
            hazards.barrier()
        hazards.add(reads, writes, pieces)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Blocks of two, so that a few spans fill many."""
    if "real" not in request.node.name:
        monkeypatch.setattr(spans_module, "BLOCK", 2)
        monkeypatch.setattr(spans_module, "FEW", 3)
        monkeypatch.setattr(hazards_module, "FEW", 1)


@given(STEPS, st.booleans())
def test_barriers_stand_where_the_specification_says(steps: Any, barriers: bool) -> None:
    walk(BothHazards(Hazards), steps, barriers=barriers)


class NoFew(Hazards):
    """Wrong: spans that were not put away are not looked at."""

    def in_the_way(self, reads: Iterable[Span], writes: Iterable[Span], pieces: Iterable[int]) -> bool:
        few, self._few_writes = self._few_writes, []
        try:
            return super().in_the_way(reads, writes, pieces)
        finally:
            self._few_writes = few


class NoReads(Hazards):
    """Wrong: what was read may be overwritten."""

    def add(self, reads: Iterable[Span], writes: Iterable[Span], written: Iterable[int]) -> None:
        super().add([], writes, written)


class Shifted(Spans):
    """Wrong: a span that begins where the question ends is taken for the one that could overlap."""

    def overlaps(self, low: int, high: int) -> bool:
        return super().overlaps(low, high + 1)


class OnlyExtends(Spans):
    """Wrong: a span that joins two others swallows one of them alone."""

    def add(self, low: int, high: int) -> None:
        if not self.overlaps(low, high):
            super().add(low, high)


def wrong_spans(kind: type[Spans]) -> Callable[[], Hazards]:
    class Wrong(Hazards):
        def _put_away(self, spans: Spans | None, few: list[Span]) -> Spans:
            return super()._put_away(kind() if spans is None else spans, few)

    return Wrong


@pytest.mark.parametrize("wrong", [NoFew, NoReads, wrong_spans(Shifted), wrong_spans(OnlyExtends)])
def test_a_wrong_form_is_noticed(wrong: Callable[[], Hazards]) -> None:
    @settings(database=None, max_examples=1000, derandomize=True, phases=[Phase.generate])
    @given(STEPS, st.booleans())
    def attempt(steps: Any, barriers: bool) -> None:
        walk(BothHazards(wrong), steps, barriers=barriers)

    with pytest.raises(AssertionError):
        attempt()


@given(st.lists(SPAN, max_size=80), st.lists(st.integers(1, 6), max_size=20))
def test_spans_are_the_numbers_put_in(spans: list[Span], taken: list[int]) -> None:
    made, numbers = Spans(), set[int]()
    for span in spans:
        made.add(*span)
        numbers |= set(range(*span))
        assert {n for low, high in made.spans() for n in range(low, high)} == numbers
    for size in taken:
        fits = [n for n in sorted(numbers) if all(n + i in numbers for i in range(size))]
        if not fits:
            with pytest.raises(ValueError, match="in a row"):
                made.take(size)
            continue
        assert made.take(size) == fits[0]
        numbers -= set(range(fits[0], fits[0] + size))
        assert {n for low, high in made.spans() for n in range(low, high)} == numbers
    pairs = made.spans()
    assert all(a[1] < b[0] for a, b in itertools.pairwise(pairs))
    assert bool(made) == bool(numbers)


Fit = Callable[[Iterable[tuple[int, int, int]], int], tuple[list[int], int]]

PIECES = st.lists(st.tuples(st.integers(0, 300), st.integers(0, 2), st.integers(0, 6)), max_size=60).map(
    lambda drawn: [(size, first, first + life) for (size, _, life), first in zip(drawn, firsts(drawn), strict=True)]
)


def firsts(drawn: list[tuple[int, int, int]]) -> list[int]:
    return [sum(later for _, later, _ in drawn[:i]) for i in range(len(drawn))]


@pytest.mark.parametrize("fit", [first_fit, spans_module._first_fit_of_many])
@given(pieces=PIECES)
def test_work_memory_lies_where_the_specification_says(fit: Fit, pieces: list[tuple[int, int, int]]) -> None:
    assert fit(pieces, 64) == plain_first_fit(pieces, 64)


def test_pieces_that_all_live_are_not_gone_through_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(spans_module, "_first_fit_of_many", lambda pieces, step: asked.append(len(pieces)))
    first_fit([(64, 0, 1)] * 3, 64)
    assert not asked
    first_fit([(64, 0, 1)] * 5, 64)
    assert asked == [5]


def test_memory_freed_too_early_is_noticed() -> None:
    @settings(database=None, max_examples=500)
    @given(PIECES)
    def attempt(pieces: list[tuple[int, int, int]]) -> None:
        early = [(size, first, last - 1) for size, first, last in pieces]
        assert first_fit(early, 64) == plain_first_fit(pieces, 64)

    with pytest.raises(AssertionError):
        attempt()


@given(st.lists(st.tuples(st.sampled_from("rlw"), st.integers(0, 5), SPAN), max_size=60))
def test_memory_holds_until_its_source_is_written_to(events: list[tuple[str, int, Span]]) -> None:
    memo = BothMemo(Memo)
    for what, key, span in events:
        if what == "r":
            memo.remember(key, object(), span)
        elif what == "l":
            memo.remembered(key)
        else:
            memo.wrote(*span)


def test_so_many_are_remembered_and_the_longest_unasked_goes() -> None:
    memo = Memo()
    for i in range(MAX_REMEMBERED):
        memo.remember(i, str(i), (i, i + 1))
    assert memo.remembered(0) == "0"
    memo.remember(MAX_REMEMBERED, "new", (0, 0))
    assert memo.remembered(1) is None and memo.remembered(0) == "0" and memo.remembered(2) == "2"


# ---- real graphs


@pytest.mark.parametrize("flash_attn", [False, True])
@pytest.mark.parametrize("n_expert", [0, 4])
def test_real_models_are_lowered_as_the_specification_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_expert: int, flash_attn: bool
) -> None:
    made: list[cpu.Builder] = []
    places: list[int] = []

    def builder(n_threads: int) -> cpu.Builder:
        made.append(real(n_threads, _hazards=BothHazards(Hazards), _memo=BothMemo(Memo)))
        return made[-1]

    def both_fit(pieces: Iterable[tuple[int, int, int]], step: int) -> tuple[list[int], int]:
        pieces = list(pieces)
        found = first_fit(pieces, step)
        assert found == plain_first_fit(pieces, step)
        places.append(len(pieces))
        return found

    real = cpu.Builder
    monkeypatch.setattr(cpu, "Builder", builder)
    monkeypatch.setattr(builder_module, "first_fit", both_fit)
    path = write_llama(tmp_path / "m.gguf", n_layer=3, n_expert=n_expert)
    model = Model.load(path)
    context = Context(model, n_ctx=512, n_ubatch=32, flash_attn=flash_attn)
    context.decode(list(range(40)))  # two micro-batches, then one token
    context.decode([3])
    context.close()
    model.close()
    answers = [answer for b in made for answer in b._hazards.answers]  # type: ignore[attr-defined]
    assert len(made) >= 3 and len(answers) > 150 and 20 < sum(answers) < len(answers)
    assert sum(b._memo.found for b in made) > 10 and max(places) > 5  # type: ignore[attr-defined]


# ---- graphs that share nothing


class Counted(int):
    """An address that counts how often it is compared."""

    comparisons = 0


def counted(compare: Callable[[int, int], bool]) -> Callable[[int, int], bool]:
    def method(self: int, other: int) -> bool:
        Counted.comparisons += 1
        return compare(int(self), int(other))

    return method


for word in ("lt", "le", "gt", "ge"):
    setattr(Counted, f"__{word}__", counted(getattr(operator, word)))


def test_what_a_step_costs_grows_with_the_logarithm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparisons are counted instead of seconds; the plain form needs 32,000 a step of these."""
    monkeypatch.setattr(spans_module, "BLOCK", 256)
    monkeypatch.setattr(hazards_module, "FEW", 8)
    monkeypatch.setattr(Counted, "comparisons", 0)
    hazards = Hazards()
    count = 16_000
    for i in range(count):
        # no two touch, in no order
        at = (i * 7919) % count * 16
        span = (Counted(at), Counted(at + 4))
        source = (Counted(at + 8), Counted(at + 12))
        assert not hazards.in_the_way([source], [span], [])
        hazards.add([source], [span], [])
    assert Counted.comparisons < 200 * count


def nodes_that_share_nothing(device: cpu.CPUDevice, count: int) -> Graph:
    buffer = device.alloc_buffer(32 * count)
    graph = Graph()
    for i in range(count):
        a = Tensor(GGMLType.F32, (1,))
        node = ops.scale(a, 2.0)
        buffer.place(a, 32 * i)
        buffer.place(node, 32 * i + 16)
        node.flags |= Flag.COMPUTE
        graph.nodes.append(node)
    return graph


def test_a_plan_of_many_nodes_that_share_nothing_has_no_barrier() -> None:
    device = cpu.CPUDevice()
    backend = device.open(2)
    count, asked = 20_000, []
    plan = backend.plan(nodes_that_share_nothing(device, count), cancelled=lambda: asked.append(1) or False)
    assert len(plan.steps) == count and not plan.steps["sync"][:-1].any()  # the last ends the run
    assert len(asked) >= 2 * (count // ASK_EVERY)
    backend.close()


@pytest.mark.parametrize("when", [1, 2, 9, 16])
def test_planning_ends_for_a_client_that_left(when: int) -> None:
    """In whichever part of it: nodes are walked twice."""
    device = cpu.CPUDevice()
    backend = device.open(1)
    asked: list[int] = []
    graph = nodes_that_share_nothing(device, 8 * ASK_EVERY)
    with pytest.raises(ComputeError, match="cancelled at node"):
        backend.plan(graph, cancelled=lambda: asked.append(1) or len(asked) >= when)
    assert len(asked) == when
    backend.close()


def test_work_memory_has_a_limit() -> None:
    """The numbers are there before the memory is."""
    device = cpu.CPUDevice()
    backend = device.open(1)
    tokens = 1 << 15
    x, positions = Tensor(GGMLType.F32, (64, 1, tokens), (4, 0, 0, 0)), Tensor(GGMLType.I32, (tokens,), (0, 0, 0, 0))
    node = ops.rope(x, positions, 64)
    buffer = device.alloc_buffer(2048 + node.nbytes)
    for i, t in enumerate((x, positions, node)):
        buffer.place(t, 1024 * i)
    node.flags |= Flag.COMPUTE
    graph = Graph([node])
    with pytest.raises(WorkMemoryError, match=r"needs \d+ bytes of work memory, 1000000 are allowed") as refused:
        backend.plan(graph, max_work=1_000_000)
    assert refused.value.size > 2**23 and refused.value.limit == 1_000_000
    small = nodes_that_share_nothing(device, 3)
    work = backend.plan(small, max_work=1 << 20).nbytes
    assert 3 * 64 <= work <= 1 << 13
    assert backend.plan(small, max_work=work).nbytes == work
    with pytest.raises(WorkMemoryError):
        backend.plan(small, max_work=work - 1)
    backend.close()
