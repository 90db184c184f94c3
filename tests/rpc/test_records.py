"""Tensors and graphs to records and back."""

from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyggml_rpc.connection import Request
from pyggml_rpc.errors import RefusedError
from pyggml_rpc.records import (
    ClientBuffer,
    ForeignGraph,
    link,
    read_graph,
    read_tensors,
    write_graph,
    write_tensor,
    write_tensors,
)
from pyggml_rpc.wire import NEWEST, TENSOR, Command, Protocol, unpack

from pyggml import ops
from pyggml.backend.base import Buffer
from pyggml.backend.host import HostBuffer
from pyggml.dtypes import SIZES, GGMLType
from pyggml.graph import Graph, build_forward
from pyggml.ops import Op
from pyggml.tensor import Flag, Tensor

T = GGMLType
HANDLE, BASE, SIZE = 0xABCDEF, 1 << 40, 1 << 20


@pytest.fixture
def buffer(kit: Any) -> Buffer:
    return HostBuffer.alloc(kit.ToyDevice(), SIZE)


def read(body: bytes, protocol: Protocol = NEWEST) -> ForeignGraph:
    return read_graph(Request(Command.GRAPH_COMPUTE, body, protocol[Command.GRAPH_COMPUTE].request))


@pytest.fixture
def lent(buffer: Buffer) -> dict[int, ClientBuffer]:
    return {HANDLE: ClientBuffer(HANDLE, BASE, buffer, 0, SIZE)}


def at(tensors: dict[int, int]) -> Any:
    """A `place` for the client's end: id(tensor) -> offset."""
    return lambda t: (HANDLE, BASE + tensors[id(t)]) if id(t) in tensors else (0, 0)


def layer() -> tuple[Graph, list[Tensor]]:
    """An attention-like piece: a write through a view into a cache, a permuted read, a product, a sum."""
    cache, x, rows = Tensor(T.F16, (32, 16), name="cache"), Tensor(T.F32, (32, 2), name="x"), Tensor(T.I64, (2,))
    written = ops.set_rows(ops.view(cache, (32, 8), (64,), 256), x, rows, name="written")
    keys = ops.permute(ops.reshape(cache, 8, 4, 16), 0, 2, 1, 3, name="keys")
    q = ops.permute(ops.reshape(ops.rms_norm(x, 1e-5, name="norm"), 8, 4, 2), 0, 2, 1, 3)
    scores = ops.mul_mat(keys, q, name="scores")
    graph = build_forward([written, ops.add(scores, scores, name="sum")])
    return graph, [cache, x, rows]


def lay_out(graph: Graph, leafs: list[Tensor]) -> dict[int, int]:
    offsets: dict[int, int] = {}
    end = 0
    for t in [*leafs, *graph.nodes]:
        root = t.view_src or t
        if id(root) not in offsets:
            offsets[id(root)] = end
            end += (root.nbytes + 63) // 64 * 64
        offsets[id(t)] = offsets[id(root)] + t.view_offs
    return offsets


def test_a_graph_arrives_as_it_was(lent: dict[int, ClientBuffer], buffer: Buffer) -> None:
    graph, leafs = layer()
    offsets = lay_out(graph, leafs)
    body = write_graph(NEWEST, 3, 1, graph, at(offsets))
    foreign = read(body)
    assert foreign.device == 3
    arrived = link(foreign, read_tensors(foreign.records, lent))
    sent = [node for node in graph.nodes if node.op not in ops.VIEW_OPS]
    assert [n.name for n in arrived.nodes] == [n.name for n in sent]
    for ours, theirs in zip(sent, arrived.nodes, strict=True):
        for a, b in zip((ours, *ours.src), (theirs, *theirs.src), strict=True):
            assert a is not None and b is not None
            assert (a.type, a.ne, a.nb, a.op, a.op_params, a.name) == (b.type, b.ne, b.nb, b.op, b.op_params, b.name)
            assert b.buffer is buffer and b.data - buffer.base == offsets[id(a)]
            ops.check(b)
        assert theirs.flags & Flag.COMPUTE
        assert arrived.uses[id(theirs)] == graph.uses.get(id(ours), 0)
    identity = {id(a): b for a, b in zip(sent, arrived.nodes, strict=True)}
    assert arrived.nodes[-1].src == (identity[id(sent[-2])],) * 2, "one tensor, not two"


def test_views_name_their_root(lent: dict[int, ClientBuffer]) -> None:
    graph, leafs = layer()
    foreign = read(write_graph(NEWEST, 0, 1, graph, at(lay_out(graph, leafs))))
    names = foreign.records["name"].tolist()  # views that have no name of their own bear their root's
    (keys,) = (r for r, name in zip(foreign.records, names, strict=True) if name == b"keys")
    (cache,) = (r for r, name in zip(foreign.records, names, strict=True) if name == b"cache" and not r["view_src"])
    assert keys["view_src"] == cache["id"] and keys["data"] == cache["data"] + keys["view_offs"]
    assert foreign.records["id"].all() and len(set(foreign.records["id"].tolist())) == len(foreign.records)


def test_operands_come_without_their_past() -> None:
    """A node of an earlier graph is plain data in this one."""
    x = Tensor(T.F32, (4,), name="x")
    early = ops.scale(x, 2.0, name="early")
    late = ops.scale(early, 3.0, name="late")
    records = read(write_graph(NEWEST, 0, 1, Graph([late]), lambda t: (1, 64))).records
    assert records["name"].tolist() == [b"early", b"late"]
    assert not records["src"][0].any() and records["src"][1].tolist() == [1] + [0] * 9


def test_tensors_elsewhere_are_sent_as_nowhere() -> None:
    record = unpack(TENSOR, write_tensor(Tensor(T.F32, (4,)), lambda t: (0, 0)))
    assert record["buffer"][0] == record["data"][0] == 0 and record["id"][0] != 0


@pytest.mark.parametrize("name", ["", "x" * 63, "x" * 64, "x" * 200, "größe", "ä" * 40, "a\0b"])
def test_names(name: str, lent: dict[int, ClientBuffer]) -> None:
    records = write_tensors([Tensor(T.F32, (4,), name=name)], lambda t: (HANDLE, BASE), {})
    assert records.tobytes()[228 + 63] == 0, "NUL-terminated, as the reference wants it"
    (tensor,) = read_tensors(records, lent)
    if len(name.encode()) < 64 and "\0" not in name:
        assert tensor.name == name


@settings(deadline=None, max_examples=200)
@given(
    st.sampled_from([T.F32, T.F16, T.I64, T.Q4_0, T.Q8_0, T.Q4_K]),
    st.lists(st.integers(0, 5), min_size=4, max_size=4),
    st.lists(st.integers(0, 40), min_size=4, max_size=4),
    st.integers(0, 300),
    st.integers(0, 2000),
)
def test_extent_is_what_a_walk_over_all_elements_touches(
    kit: Any, dtype: GGMLType, ne: list[int], steps: list[int], offset: int, size: int
) -> None:
    """Brute force: accepted exactly if every block of the tensor lies inside the buffer."""
    block, bytes_a_block = SIZES[dtype]
    nb = [bytes_a_block, *(bytes_a_block * s for s in steps[1:])]
    if block == 1:
        nb[0] *= max(1, steps[0] % 4)
    offset *= bytes_a_block
    home = ClientBuffer(HANDLE, BASE, HostBuffer.alloc(kit.ToyDevice(), size), 0, size)
    record = kit.record((ne[0] * block, *ne[1:]), dtype, nb=nb, buffer=HANDLE, data=BASE + offset)
    blocks = [offset + sum(i * b for i, b in zip(at, nb, strict=True)) for at in product(*(range(n) for n in ne))]
    inside = all(b + bytes_a_block <= size for b in blocks) and offset <= size
    crowded = len(blocks) * bytes_a_block > size
    try:
        (tensor,) = read_tensors(record, {HANDLE: home})
    except RefusedError:
        assert not inside or crowded
    else:
        assert inside and not crowded
        assert tensor.data == home.buffer.base + offset and tensor.buffer is home.buffer


def test_types_without_a_buffer_are_shapes_alone(kit: Any) -> None:
    (tensor,) = read_tensors(kit.record((4,), buffer=5, data=6), None)
    assert tensor.buffer is None and tensor.data == 0


def test_a_graph_of_thousands_is_read_at_once(kit: Any, lent: dict[int, ClientBuffer]) -> None:
    """Order and sources survive in a long chain; no recursion is involved."""
    x = Tensor(T.F32, (4,), name="0")
    node = x
    for i in range(3000):
        node = ops.scale(node, 1.0, name=str(i + 1))
    foreign = read(write_graph(NEWEST, 0, 1, build_forward([node]), lambda t: (HANDLE, BASE)))
    graph = link(foreign, read_tensors(foreign.records, lent))
    assert [n.name for n in graph.nodes] == [str(i + 1) for i in range(3000)]
    assert all(b.src == (a,) for a, b in zip(graph.nodes, graph.nodes[1:], strict=False))
    assert {n.op for n in graph.nodes} == {Op.SCALE}
