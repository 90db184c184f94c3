"""Tensors and graphs <-> the records that stand for them on the wire.

Owns the meaning of a record's fields and the proof that a foreign tensor lies inside its buffer. Everything from a peer
is checked with Python's own integers, which do not wrap, before a Tensor exists: what `read_tensors` returns may be
handed to a kernel that checks nothing. Whether the *op* is well-formed is asked later (`pyggml.ops.check`).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import gcd, prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyggml.backend.base import Buffer
from pyggml.dtypes import SIZES, GGMLType, TypeSize
from pyggml.graph import Graph
from pyggml.ops import VIEW_OPS, Op
from pyggml.tensor import MAX_NAME, MAX_SRC, Flag, Tensor, contiguous_strides
from pyggml_rpc.connection import Request
from pyggml_rpc.errors import RefusedError
from pyggml_rpc.wire import TENSOR, Command, Protocol

Records = NDArray[np.void]

U32_MAX = 2**32 - 1
KEY = 16  # bytes of a client's key
KEY_AT = MAX_NAME - KEY
EMPTY_MOST = 1 << 24  # what the other dimensions of a tensor of no elements may come to: kernels may count by them
COMPUTE = int(Flag.COMPUTE)
BY_NUMBER: dict[int, tuple[GGMLType, TypeSize]] = {int(t): (t, size) for t, size in SIZES.items()}

RecordOf = Callable[[Tensor], tuple[int, int]]
"""A tensor -> (handle of its buffer, data), or (0, 0) when it lives elsewhere."""


# ---- tensors -> records


def write_tensors(
    tensors: Iterable[Tensor], record_of: RecordOf, ids: Mapping[int, int], uses: Mapping[int, int] | None = None
) -> Records:
    """One record each. `ids` gives the wire's number of a tensor by id(); a source without one is sent as absent.

    Strides over 4 GiB lose their upper half, as the reference client's do.
    """
    uses = uses or {}
    rows: list[tuple[Any, ...]] = []
    for t in tensors:
        handle, data = record_of(t)
        # a source without a number belongs to a graph that was computed before: this tensor is data here
        src = [0 if s is None else ids.get(id(s), 0) for s in t.src]
        rows.append(
            (
                ids.get(id(t), 1),
                t.type,
                handle,
                t.ne,
                tuple(b & U32_MAX for b in t.nb),
                t.op,
                t.op_params,
                t.flags,
                src + [0] * (MAX_SRC - len(src)),
                0 if t.view_src is None else ids.get(id(t.view_src), 0),
                t.view_offs,
                data,
                t.name.encode()[: MAX_NAME - 1],
                uses.get(id(t), 0),
            )
        )
    return np.array(rows, TENSOR)


def sign(record: Records, key: bytes) -> Records:
    """The record with a client's key behind the end of its name, where stock servers do not look; as it is where the
    name leaves no room. The key says whose the content of a weight is: see `signer`."""
    name: bytes = record["name"][0]
    if not key or len(name) >= KEY_AT:
        return record
    signed = record.copy()
    signed["name"] = name.ljust(KEY_AT, b"\0") + key
    return signed


def signer(record: Records) -> bytes:
    """The key that a client has put behind the record's name; empty: none."""
    name: bytes = record["name"][0]
    return name[KEY_AT:].ljust(KEY, b"\0") if name[KEY_AT - 1 : KEY_AT] == b"\0" and name[KEY_AT:] else b""


def write_tensor(tensor: Tensor, record_of: RecordOf) -> bytes:
    """One record of 296 bytes (wire.TENSOR)."""
    return write_tensors([tensor], record_of, {}).tobytes()


def write_graph(protocol: Protocol, device: int, uid: int, graph: Graph, record_of: RecordOf) -> bytes:
    """The body of GRAPH_COMPUTE: the nodes, what they read, and the roots of views; every node is to be computed."""
    nodes = [node for node in graph.nodes if node.op not in VIEW_OPS]
    tensors: dict[int, Tensor] = {}
    for node in nodes:
        for t in (*node.src, node):
            if t is not None:
                if t.view_src is not None:
                    tensors.setdefault(id(t.view_src), t.view_src)
                tensors.setdefault(id(t), t)
    ids = {key: number for number, key in enumerate(tensors, 1)}
    records = write_tensors(tensors.values(), record_of, ids, graph.uses)
    order = np.array([ids[id(node)] for node in nodes], "<u8")
    if nodes:
        records["flags"][order.astype(np.intp) - 1] |= COMPUTE
    head = protocol.pack(Command.GRAPH_COMPUTE, device=device, uid=uid, n_nodes=len(nodes))
    return b"".join((head, order.tobytes(), len(records).to_bytes(4, "little"), records.tobytes()))


# ---- records -> tensors


@dataclass
class ClientBuffer:
    """A buffer that a peer may use: its random handle, and the base address that the peer was told."""

    handle: int
    base: int
    buffer: Buffer
    device: int
    size: int  # as asked for: what counts against the memory on offer


class ForeignGraph(NamedTuple):
    """What GRAPH_COMPUTE says, framing checked, contents not."""

    device: int
    nodes: list[int]
    records: Records


def read_graph(request: Request) -> ForeignGraph:
    """Take a GRAPH_COMPUTE apart. Raises RefusedError when its counts do not fill it exactly."""
    body, length = request.body, len(request.body)
    device, n_nodes = (int(request.record[field][0]) for field in ("device", "n_nodes"))
    fixed = request.layout.itemsize
    count_at = fixed + 8 * n_nodes
    if count_at + 4 > length:
        raise RefusedError(f"{n_nodes} nodes do not fit in {length} bytes")
    n_tensors = int.from_bytes(memoryview(body)[count_at : count_at + 4], "little")
    if count_at + 4 + n_tensors * TENSOR.itemsize != length:
        raise RefusedError(f"{n_nodes} nodes and {n_tensors} tensors do not make {length} bytes")
    nodes: list[int] = np.frombuffer(body, "<u8", n_nodes, fixed).tolist()
    return ForeignGraph(device, nodes, np.frombuffer(body, TENSOR, n_tensors, count_at + 4))


def read_tensors(records: Records, buffers: Mapping[int, ClientBuffer] | None) -> list[Tensor]:
    """Tensors without sources. With `buffers`, each lies wholly inside the buffer that it names, or is unplaced.

    Unplaced (`buffer` None, data 0) are those with data 0 in no buffer of this peer. `buffers` None asks for shapes alone:
    every tensor is unplaced. Raises RefusedError naming the tensor and the numbers.
    """
    columns = (records[field].tolist() for field in ("type", "buffer", "ne", "nb", "op", "flags", "data", "view_offs"))
    raw = zip(*columns, records["op_params"].tolist(), records["name"].tolist(), strict=True)
    tensors = []
    for type_id, handle, ne, nb, op, flags, data, view_offs, op_params, name in raw:
        label = name.partition(b"\0")[0].decode("utf-8", "replace")
        known = BY_NUMBER.get(type_id)
        if known is None:
            raise RefusedError(f"tensor {label!r}: unknown type {type_id}")
        dtype, size = known
        if ne[0] % size.block_size:
            raise RefusedError(
                f"tensor {label!r}: row length {ne[0]} is not a multiple of the block size {size.block_size} of {dtype.name}"
            )
        tensor = Tensor(
            dtype, ne, _strides(dtype, ne, nb), op=op, op_params=op_params, flags=flags, view_offs=view_offs, name=label
        )
        if buffers is not None:
            _place(tensor, handle, data, buffers, size)
        tensors.append(tensor)
    return tensors


def _strides(dtype: GGMLType, ne: list[int], nb: list[int]) -> tuple[int, int, int, int]:
    """The strides meant: those of a dense tensor over 4 GiB come without their upper halves."""
    a, b, c, d = ne
    dense = contiguous_strides(dtype, (a, b, c, d))
    if dense[3] > U32_MAX and all(full & U32_MAX == given for full, given in zip(dense, nb, strict=True)):
        return dense
    return nb[0], nb[1], nb[2], nb[3]


def _place(tensor: Tensor, handle: int, data: int, buffers: Mapping[int, ClientBuffer], size: TypeSize) -> None:
    found = buffers.get(handle)
    if found is None:
        if data:
            raise RefusedError(
                f"tensor {tensor.name!r}: data 0x{data:x} in no buffer of this connection (0x{handle:x})"
            )
        return
    buffer, offset = found.buffer, data - found.base
    if size.block_size > 1 and tensor.nb[0] != size.type_size:
        raise RefusedError(f"{_shown(tensor)}: blocks are {tensor.nb[0]} bytes apart, not {size.type_size}")
    extent, room = tensor.nbytes, buffer.size
    if not 0 <= offset <= offset + extent <= room:
        raise RefusedError(f"{_shown(tensor)}: {extent} bytes at offset {offset} lie outside a buffer of {room}")
    # elements that share bytes could be more than the buffer holds, and take for ever
    dense = prod(tensor.ne) // size.block_size * size.type_size
    if dense > room:
        raise RefusedError(f"{_shown(tensor)}: {dense} bytes of elements in a buffer of {room}")
    if not dense and prod(n or 1 for n in tensor.ne) > max(room, EMPTY_MOST):
        raise RefusedError(f"{_shown(tensor)}: a tensor of no elements with dimensions beyond a buffer of {room}")
    step = gcd(size.type_size, buffer.device.alignment)
    if offset % step or _apart(tensor, step):
        raise RefusedError(f"{_shown(tensor)}: offset {offset} or a stride is not a multiple of {step}")
    tensor.buffer = buffer
    tensor.data = buffer.base + offset


def _apart(tensor: Tensor, step: int) -> bool:
    """Whether a stride that is used is no multiple of `step`."""
    (n0, n1, n2, n3), (b0, b1, b2, b3) = tensor.ne, tensor.nb
    if not (b0 % step or b1 % step or b2 % step or b3 % step):
        return False
    return bool((n0 > 1 and b0 % step) or (n1 > 1 and b1 % step) or (n2 > 1 and b2 % step) or (n3 > 1 and b3 % step))


def _shown(tensor: Tensor) -> str:
    return f"tensor {tensor.name!r} ({tensor.type.name} {list(tensor.ne)}, strides {list(tensor.nb)})"


def prune(graph: ForeignGraph) -> ForeignGraph:
    """Without the records that no node means: clients send all that a graph came from, which may be a thousand times more.

    None is left out where two have one id, one has none, or one is missing: that is for `link` to refuse.
    """
    ids, nodes = graph.records["id"], np.array(graph.nodes, "<u8")
    if len(np.unique(ids)) != len(ids) or not ids.all():
        return graph
    listed = graph.records[np.isin(ids, nodes)]
    meant = np.concatenate((nodes, listed["src"].ravel(), listed["view_src"]))
    if not np.isin(meant, [*ids, 0]).all():
        return graph
    return graph._replace(records=graph.records[np.isin(ids, meant)])


def link(graph: ForeignGraph, tensors: list[Tensor]) -> Graph:
    """The nodes to be computed, in the peer's order, with their sources. `tensors` are those of `graph.records`.

    Left out are nodes that compute nothing: views, those without the COMPUTE flag, those of no elements. Raises
    RefusedError for an id that is absent, unknown, or there twice, and for a source that lives nowhere.
    """
    numbers: list[int] = graph.records["id"].tolist()
    by_id = dict(zip(numbers, tensors, strict=True))
    if len(by_id) != len(tensors) or 0 in by_id:
        raise RefusedError(
            f"{len(tensors)} tensors have {len(by_id)} different ids" + (", one is 0" if 0 in by_id else "")
        )
    if len(set(graph.nodes)) != len(graph.nodes):
        raise RefusedError(f"a node is listed twice among {len(graph.nodes)}")
    row_of = {number: row for row, number in enumerate(numbers)}
    sources, roots = graph.records["src"].tolist(), graph.records["view_src"].tolist()
    use_counts = graph.records["use_count"].tolist()
    nodes: list[Tensor] = []
    uses: dict[int, int] = {}
    for number in graph.nodes:
        row = row_of.get(number)
        if row is None:
            raise RefusedError(f"node 0x{number:x} is not among the {len(tensors)} tensors")
        node = tensors[row]
        if not node.flags & COMPUTE or node.op in VIEW_OPS or not node.nelements:
            continue
        if node.buffer is None:
            raise RefusedError(f"{_name(node)}: it is in no buffer here")
        wanted = sources[row]
        while wanted and not wanted[-1]:
            wanted.pop()
        src: list[Tensor | None] = []
        for index, source in enumerate(wanted):
            operand = by_id.get(source) if source else None
            if operand is None and source:
                raise RefusedError(
                    f"{_name(node)}: source {index}, 0x{source:x}, is not among the {len(tensors)} tensors"
                )
            if operand is not None and operand.buffer is None:
                raise RefusedError(f"{_name(node)}: source {index}, {operand.name!r}, is in no buffer here")
            src.append(operand)
        node.src = tuple(src)
        if roots[row]:
            node.view_src = by_id.get(roots[row])
        nodes.append(node)
        uses[id(node)] = use_counts[row]
    result = Graph(nodes)
    result.uses = uses
    return result


def _name(node: Tensor) -> str:
    return f"node {node.name!r} ({Op(node.op).name if 0 <= node.op < len(Op) else f'op {node.op}'})"


def check_range(tensor: Tensor, offset: int, size: int) -> None:
    """Raises RefusedError unless `size` bytes at `offset` lie inside the tensor."""
    if offset + size > tensor.nbytes:
        raise RefusedError(f"tensor {tensor.name!r}: {size} bytes at offset {offset} of {tensor.nbytes}")
