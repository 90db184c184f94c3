"""Order of nodes."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from pyggml import ops
from pyggml.dtypes import GGMLType
from pyggml.graph import Graph, build_forward
from pyggml.ops import Op
from pyggml.tensor import Flag, Tensor

F32 = GGMLType.F32


def leaf(name: str = "") -> Tensor:
    return Tensor(F32, (4, 4), name=name)


def assert_ordered(graph: Graph) -> None:
    """Each tensor once, each behind all that it reads."""
    have = {id(t) for t in graph.leafs}
    for node in graph.nodes:
        needs = [s for s in (*node.src, node.view_src) if s is not None and s is not node]
        assert all(id(s) in have for s in needs), node
        assert id(node) not in have
        have.add(id(node))


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 2**32), st.integers(1, 60))
def test_nodes_stand_behind_their_sources(seed: int, n: int) -> None:
    rng = random.Random(seed)
    made = [leaf(), leaf(), leaf()]
    for _ in range(n):
        a, b = rng.choice(made), rng.choice(made)
        made.append(rng.choice([ops.add, ops.mul, ops.mul_mat, ops.cpy])(a, b) if rng.random() < 0.8 else ops.dup(a))
    outputs = rng.sample(made[3:], rng.randint(1, min(4, n)))
    graph = build_forward(outputs)
    assert_ordered(graph)
    assert all(any(o is node for node in graph.nodes) for o in outputs)
    assert all(node.flags & Flag.COMPUTE for node in graph.nodes)
    assert not any(t.flags & Flag.COMPUTE for t in graph.leafs)
    for t in (*graph.nodes, *graph.leafs):
        readers = sum(s is t for node in graph.nodes for s in node.src)
        assert graph.uses.get(id(t), 0) == readers


def test_what_nobody_needs_is_left_out() -> None:
    a, b = leaf("a"), leaf("b")
    wanted = ops.add(a, a)
    ops.mul(a, b)
    graph = build_forward([wanted])
    assert graph.nodes == [wanted] and graph.leafs == [a] and graph.uses[id(a)] == 2


def test_left_source_first() -> None:
    a = leaf()
    x, y = ops.scale(a, 2.0, name="x"), ops.scale(a, 3.0, name="y")
    assert [n.name for n in build_forward([ops.add(x, y, name="sum")]).nodes] == ["x", "y", "sum"]
    assert [n.name for n in build_forward([ops.sub(y, x, name="difference")]).nodes] == ["y", "x", "difference"]


def test_a_write_that_is_listed_first_comes_before_its_reader() -> None:
    """The key cache is written with SET_ROWS and read through another view of it."""
    cache, rows = Tensor(F32, (4, 8), name="cache"), Tensor(GGMLType.I64, (4,))
    write = ops.set_rows(cache, ops.scale(leaf(), 2.0), rows, name="write")
    read = ops.dup(ops.view(cache, (4, 2)), name="read")
    names = [n.name for n in build_forward([write, read]).nodes]
    assert names.index("write") < names.index("read")


def test_parameters_are_nodes() -> None:
    a = leaf("weight")
    a.flags |= Flag.PARAM
    assert a in build_forward([ops.dup(a)]).nodes


def test_a_cast_is_its_own_second_source() -> None:
    node = Tensor(GGMLType.F16, (4, 4), op=Op.CPY)
    node.src = (leaf(), node)
    assert build_forward([node]).nodes == [node]


def test_a_long_chain() -> None:
    """Deeper than Python's own recursion goes."""
    t = leaf()
    for _ in range(20000):
        t = ops.scale(t, 1.0)
    graph = build_forward([t])
    assert len(graph.nodes) == 20000
    assert_ordered(graph)
