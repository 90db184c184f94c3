"""Allocation by lifetime: no live tensor is overwritten, memory is used again, and not more of it than llama.cpp uses."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peer import Peer

from pyggml import ops
from pyggml.alloc import INPLACE_OPS, Arena, Step, place_tensors, root_of, steps_of
from pyggml.backend.reference import ReferenceDevice
from pyggml.dtypes import GGMLType
from pyggml.graph import build_forward
from pyggml.model.model import Model
from pyggml.runtime.context import Context
from pyggml.tensor import Flag, Tensor

ALIGNMENT = 32


def leaf(*ne, flags=Flag.INPUT, name="in"):
    return Tensor(GGMLType.F32, ne, flags=flags, name=name)


# ---- arena


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 300), st.integers(0, 10**6)), max_size=60))
def test_arena_never_hands_out_the_same_byte_twice(actions):
    arena, held = Arena(ALIGNMENT), []
    for wants_alloc, size, which in actions:
        if wants_alloc or not held:
            offset = arena.alloc(size)
            assert offset % ALIGNMENT == 0 and offset + size <= arena.size
            assert all(offset + size <= o or o + s <= offset for o, s in held if s and size)
            held.append((offset, size))
        else:
            arena.free(*held.pop(which % len(held)))
    for block in held:
        arena.free(*block)
    peak = arena.size
    assert arena.alloc(peak) == 0 and arena.size == peak, "the holes did not become one again"


def test_arena_takes_the_smallest_hole_that_fits():
    arena = Arena(1)
    big, wall, small, _ = arena.alloc(100), arena.alloc(1), arena.alloc(60), arena.alloc(1)
    assert wall == 100
    arena.free(big, 100)
    arena.free(small, 60)
    assert arena.alloc(50) == small and arena.alloc(70) == big


def test_arena_notices_a_double_free():
    arena = Arena(1)
    offset = arena.alloc(10)
    arena.alloc(10)
    arena.free(offset, 10)
    with pytest.raises(AssertionError, match="freed twice"):
        arena.free(offset, 10)


# ---- lifetimes: run the steps on an array that knows which tensor each byte belongs to


def all_roots(steps):
    return [root_of(t) for s in steps for t in (*s.reads, s.result)]


def simulate(steps, places, size):
    """Raises AssertionError when a step reads bytes that another tensor has overwritten, or writes over what it reads."""
    owner = np.zeros(size, np.int64)

    def span(root):
        place = places[id(root)]
        return slice(place.offset, place.offset + root.nbytes)

    roots = {id(root): root for root in all_roots(steps) if id(root) in places}
    claimed = set()  # leafs that nobody fills before the run have no content to lose before their first step
    for root in roots.values():
        if root.flags & Flag.INPUT:
            assert not owner[span(root)].any(), f"{root} overlaps another input"
            owner[span(root)] = id(root)
            claimed.add(id(root))
    for step in steps:
        if step.result.op in ops.VIEW_OPS and step.result.is_view:
            continue
        for source in step.reads:
            root = root_of(source)
            if id(root) in places:
                if root.op == ops.Op.NONE and id(root) not in claimed:
                    owner[span(root)] = id(root)
                    claimed.add(id(root))
                assert (owner[span(root)] == id(root)).all(), f"{source} was overwritten before {step.result} read it"
        result = root_of(step.result)
        if id(result) not in places:
            continue
        for source in step.reads:
            root = root_of(source)
            a, b = span(result), span(root) if id(root) in places else slice(0, 0)
            if root is not result and a.start < b.stop and b.start < a.stop:
                assert step.result.op in INPLACE_OPS and a.start == b.start, f"{step.result} writes over {source}"
                assert (source.ne, source.nb, source.view_offs) == (step.result.ne, step.result.nb, 0)
                assert [root_of(s) for s in step.reads].count(root) == 1
        owner[span(result)] = id(result)
    for root in roots.values():
        if root.flags & (Flag.INPUT | Flag.OUTPUT):
            assert (owner[span(root)] == id(root)).all(), f"{root} did not last to the end"


@st.composite
def graphs(draw):
    """A graph of a few shapes with shared sources, views, in-place writes and several outputs."""
    rows = draw(st.integers(1, 5))
    made = [leaf(16, rows, name=f"in{i}") for i in range(draw(st.integers(1, 3)))]
    cache = Tensor(GGMLType.F32, (16, 8), name="cache")  # placed by nobody, written by CPY
    extra = []
    for i in range(draw(st.integers(1, 25))):
        a, b = draw(st.sampled_from(made)), draw(st.sampled_from(made))
        kind = draw(st.sampled_from(["add", "mul", "scale", "norm", "product", "view", "half", "cont", "cpy", "turn"]))
        if kind in ("add", "mul") and ops.can_repeat(b, a):
            node = getattr(ops, kind)(a, b)
        elif kind == "product" and a.ne[0] == b.ne[0] and not a.is_transposed:
            node = ops.mul_mat(a, b)
        elif kind == "view" and a.is_contiguous:
            node = ops.reshape(a, a.nelements)
        elif kind == "half" and a.ne[1] > 1:
            node = ops.view(a, (a.ne[0], a.ne[1] - 1), (a.nb[1],), a.nb[1])
        elif kind == "turn":
            node = ops.permute(a, 1, 0, 2, 3)
        elif kind == "cont":
            node = ops.cont(a)
        elif kind == "cpy" and a.nelements <= cache.nelements:
            node = ops.cpy(a, ops.view(cache, a.ne))
            extra.append(node)
            continue
        elif kind == "norm":
            node = ops.rms_norm(a, 1e-5)
        else:
            node = ops.scale(a, 2.0) if a.nb[0] == 4 else ops.cont(a)
        node.name = f"n{i}"
        made.append(node)
    outputs = [*draw(st.lists(st.sampled_from(made), min_size=1, max_size=3)), made[-1], *extra[-1:]]
    for output in outputs:
        root_of(output).flags |= Flag.OUTPUT
    return build_forward([*extra, *outputs])


def place(steps, alignment=ALIGNMENT):
    arena = Arena(alignment)
    return place_tensors(steps, [arena], lambda t: 0), arena.size


@settings(deadline=None, max_examples=300)
@given(graphs())
def test_no_two_live_tensors_overlap(graph):
    steps = steps_of(graph.nodes)
    places, size = place(steps)
    assert set(places) == {id(root) for root in all_roots(steps)}
    simulate(steps, places, size)


@settings(deadline=None, max_examples=50)
@given(graphs(), st.integers(0, 1))
def test_each_device_has_its_own_offsets(graph, parity):
    steps = steps_of(graph.nodes)
    names = {id(root_of(t)): i for i, t in enumerate([*graph.leafs, *graph.nodes])}
    arenas = [Arena(ALIGNMENT), Arena(64)]
    places = place_tensors(steps, arenas, lambda t: (names[id(t)] + parity) % 2)
    for number, arena in enumerate(arenas):
        here = {k: p for k, p in places.items() if p.arena == number}
        assert all(p.offset % arena.alignment == 0 and p.offset + p.size <= arena.size for p in here.values())
        simulate([Step(s.result, tuple(r for r in s.reads if id(root_of(r)) in here)) for s in steps], here, arena.size)


def test_the_simulation_catches_an_allocator_that_frees_too_early():
    """A mutant: it overlooks who reads a tensor last, so that the tensor's place is given away before."""
    first = ops.rms_norm(leaf(64), 1e-5, name="first")
    cur = first
    for _ in range(3):
        cur = ops.mul_mat(ops.reshape(cur, 1, 64), ops.reshape(first, 1, 64))
        cur = ops.cont(ops.view(cur, (64,)))
    last = ops.add(cur, first)
    last.flags |= Flag.OUTPUT
    right = steps_of(build_forward([last]).nodes)
    simulate(right, *place(right))
    mutant = [
        Step(s.result, tuple(r for r in s.reads if i < 2 or root_of(r) is not first)) for i, s in enumerate(right)
    ]
    with pytest.raises(AssertionError, match=r"overwritten|writes over"):
        simulate(right, *place(mutant))


def test_a_chain_runs_in_place():
    x = leaf(1024)
    cur = ops.rms_norm(x, 1e-5)
    for _ in range(20):
        cur = ops.scale(cur, 2.0)
    _, size = place(steps_of(build_forward([cur]).nodes))
    assert size == 2 * x.nbytes  # the input, which stays, and one result


def test_an_input_an_output_and_a_weight_are_not_written_over():
    x, weight = leaf(256), leaf(256, flags=0, name="weight")
    buffer = ReferenceDevice().alloc_buffer(weight.nbytes)
    buffer.place(weight, 0)
    kept = ops.add(x, weight, name="kept")
    kept.flags |= Flag.OUTPUT
    steps = steps_of(build_forward([ops.scale(ops.scale(kept, 2.0), 3.0)]).nodes)
    places, size = place(steps)
    assert id(weight) not in places and weight.buffer is buffer
    assert size == 3 * x.nbytes
    simulate(steps, places, size)


def test_a_source_that_is_read_twice_by_one_node_is_not_its_place():
    x = leaf(256)
    a = ops.rms_norm(x, 1e-5)
    b = ops.mul(a, a)
    places, _ = place(steps_of(build_forward([b]).nodes))
    assert places[id(a)].offset != places[id(b)].offset


# ---- against llama.cpp


@pytest.mark.parametrize("flash_attn", [False, True])
def test_compute_buffer_is_at_most_a_fifth_larger_than_llama_cpps(flash_attn: bool, smollm2: Path, peer: Peer) -> None:
    log = peer.generate(smollm2, [1, 2], 1, n_ctx=2048, n_ubatch=512, flash_attn=flash_attn)["log"]
    sizes = re.findall(r"CPU compute buffer size = +([\d.]+) MiB", log)
    assert sizes, log[-4000:]
    theirs = float(sizes[-1]) * 2**20
    model = Model.load(smollm2, cpu=ReferenceDevice())
    context = Context(model, n_ctx=2048, n_ubatch=512, flash_attn=flash_attn)
    _, schedule = context.schedule_for(512, 2048, 512)  # llama.cpp's worst case: each token of a batch is an output
    assert theirs / 2 < sum(schedule.sizes) <= 1.2 * theirs
    context.close()
    model.close()
