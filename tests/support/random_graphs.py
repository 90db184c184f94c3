"""Random graphs, right and damaged, as a peer would send them.

Owns how records are damaged; a number says which graph, and gives the same one each time.
"""

import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pyggml_rpc.records import write_graph
from pyggml_rpc.wire import GRAPH_UID, NEWEST, TENSOR
from random_ops import BLOCKS, BLOCKS_EACH, MAKERS, Draw, Maker, T

from pyggml import ops
from pyggml.dtypes import SIZES
from pyggml.errors import PyggmlError
from pyggml.graph import build_forward
from pyggml.ops import Op
from pyggml.tensor import Tensor

SIZE = 1 << 18
"""Bytes of the buffer in which a graph's tensors lie."""
LARGE = (0, 1, 2, 3, 8, 16, 32, 33, 64, 256, 4096, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1)
STEPS = (0, 1, 2, 4, 8, 12, 16, 18, 34, 64, 128, 4096, 65536, 2**31, 2**32 - 4, 2**32 - 1)
PARAMS = (
    0,
    1,
    2,
    -1,
    3,
    4,
    5,
    7,
    8,
    15,
    16,
    31,
    64,
    100,
    65536,
    2**31 - 1,
    -(2**31),
    0x7F800000,
    -0x800000,
    0x7FC00000,
)


@dataclass
class RandomGraph:
    """`body`: of GRAPH_COMPUTE in the newest protocol. `fills`: (offset, bytes) of each row number. `results`: (from, to) of all that is written,
    offsets in the buffer; None where damage left no type to tell. `what`: ops, and what was damaged."""

    body: bytearray
    fills: list[tuple[int, bytes]]
    results: list[tuple[int, int]] | None
    what: list[str]


def random_graph(seed: int, number: int, handle: int, base: int, only: Sequence[Op] = tuple(MAKERS)) -> RandomGraph:
    """Graph `number` of a seed, in a buffer of SIZE bytes that the server calls `handle` and places at `base`. `only`: the
    ops that its nodes are made of, but for a few that follow on others."""
    rng = random.Random(f"{seed} {number}")
    blocks = random.Random(seed).sample(BLOCKS, BLOCKS_EACH)
    while True:
        d = Draw(rng, blocks)
        nodes = _nodes(d, [MAKERS[op] for op in only])
        try:
            offsets = _offsets(rng, nodes)
        except NoRoomError:
            continue
        break
    graph = build_forward(nodes)

    def place(t: Tensor) -> tuple[int, int]:
        return handle, base + offsets[id(t.view_src or t)] + t.view_offs

    fills = [
        fill for t in graph.leafs if id(t) in d.limits for fill in _numbers(rng, t, offsets[id(t)], d.limits[id(t)][1])
    ]
    body = np.frombuffer(bytearray(write_graph(NEWEST, 0, 1, graph, place)), np.uint8)
    what = [Op(n.op).name for n in graph.nodes]
    order = body[GRAPH_UID.itemsize : GRAPH_UID.itemsize + 8 * len(what)].view("<u8")
    records = body[GRAPH_UID.itemsize + 8 * len(what) + 4 :].view(TENSOR)
    what += _damage(rng, records, base)
    written = records[np.isin(records["id"], order)]
    return RandomGraph(bytearray(body.tobytes()), fills, _extents(written, base), what)


class NoRoomError(Exception):
    """The tensors of this graph are larger than the buffer."""


def _nodes(d: Draw, makers: list[Maker]) -> list[Tensor]:
    """One node, or some that share sources, or read each other's results."""
    wanted, nodes = d.of(1, 1, 1, 1, 2, 3, 6), list[Tensor]()
    while len(nodes) < wanted:
        how = d.rng.random()
        last = nodes[-1] if nodes else None
        try:
            if last is None or how < 0.4 or not last.nelements:
                made = d.rng.choice(makers)(d)
                if made.view_src is None and d.rng.random() < 0.15:  # a result with something between its rows
                    step = made.nb[1] + 64
                    made.nb = made.nb[0], step, step * made.ne[1] + 64, (step * made.ne[1] + 64) * made.ne[2]
            elif how < 0.65:  # the same once more
                made = Tensor(last.type, last.ne, op=last.op, op_params=last.op_params, src=last.src)
                if last.view_src is not None:
                    made.nb, made.view_src, made.view_offs = last.nb, last.view_src, last.view_offs
            elif last.type != T.F32:
                continue
            elif how < 0.8:  # a pair that is computed by one kernel
                nodes.append(ops.rms_norm(last, 1e-5))
                made = ops.mul(nodes[-1], d.f32(last.ne[0]))
            else:
                made = d.rng.choice(
                    (ops.sqr, lambda a: ops.add(a, a), lambda a: ops.scale(a, 2.0), lambda a: ops.cont(a))
                )(last)
        except PyggmlError:
            continue
        nodes.append(made)
    return nodes


def _offsets(rng: random.Random, nodes: list[Tensor]) -> dict[int, int]:
    """Where each tensor that is no view begins: in any order, often up to the last byte of the buffer."""
    roots: dict[int, Tensor] = {}
    for node in nodes:
        for t in (node, *node.src):
            if t is not None:
                roots.setdefault(id(t.view_src or t), t.view_src or t)
    tensors = list(roots.values())
    rng.shuffle(tensors)
    at, offsets = 0, {}
    for t in tensors:
        at += rng.choice((0, 0, 4, 64, 1024)) if SIZES[t.type].type_size == 4 else rng.choice((0, 64))
        offsets[id(t)] = at
        at += -(-t.nbytes // 8) * 8 + (rng.choice((0, 56)) & -8)
    if at > SIZE:
        raise NoRoomError
    shift = (SIZE - at) // 8 * 8 if rng.random() < 0.6 else 0
    return {key: offset + shift for key, offset in offsets.items()}


def _numbers(rng: random.Random, t: Tensor, at: int, limit: int) -> list[tuple[int, bytes]]:
    """Right numbers; in a quarter of all tensors one is wrong."""
    places = list(np.ndindex(t.ne))
    values = [rng.randrange(limit) for _ in places]
    if values and rng.random() < 0.25:
        values[rng.randrange(len(values))] = rng.choice((-1, limit, limit + 1, 2**31 - 1, -(2**31), 2**20))
    layout = "<q" if t.type == T.I64 else "<i"
    offsets = (at + sum(i * nb for i, nb in zip(place, t.nb, strict=True)) for place in places)
    return [(offset, struct.pack(layout, value)) for offset, value in zip(offsets, values, strict=True)]


def _damage(rng: random.Random, records: "np.ndarray[tuple[int], np.dtype[np.void]]", base: int) -> list[str]:
    """Changes nothing, or up to three fields; or lays a tensor upon another."""
    done = []
    if rng.random() < 0.15 and len(records) > 1:
        a, b = rng.sample(range(len(records)), 2)
        if rng.random() < 0.8:  # a result upon what it is made of, upon numbers where there are some
            a = rng.choice(np.flatnonzero(records["op"]).tolist())
            row_of = {number: row for row, number in enumerate(records["id"].tolist())}
            sources = [row_of[number] for number in records["src"][a].tolist() if number in row_of]
            numbers = [row for row in sources if records["type"][row] in (T.I32, T.I64)]
            b = rng.choice((numbers if rng.random() < 0.7 else []) or sources or [b])
        records["data"][a] = records["data"][b] + np.uint64(rng.choice((0, 0, 0, 4, 16, 64)))
        done.append("laid upon another")
    for _ in range(rng.choice((0, 0, 1, 1, 1, 2, 3))):
        row, i = rng.randrange(len(records)), rng.randrange(4)
        record = records[row : row + 1]
        name = rng.choice(("ne", "ne", "ne", "nb", "nb", "nb", "type", "op_params", "op_params", "data", "src", "src"))
        done.append(name)
        if name == "ne":
            here = int(record["ne"][0, i])
            record["ne"][0, i] = rng.choice((*LARGE, min(here + 1, 2**32 - 1), max(0, here - 1), here * 2 % 2**32))
        elif name == "nb":
            here = int(record["nb"][0, i])
            record["nb"][0, i] = rng.choice((*STEPS, min(here + 4, 2**32 - 1), max(0, here - 4), here * 2 % 2**32))
        elif name == "type":
            record["type"] = rng.choice((*map(int, (T.F32, T.F16, T.I32, T.I64, T.Q4_0, T.Q8_0)), 99))
        elif name == "op_params":
            raw = bytearray(record["op_params"][0].tobytes())
            struct.pack_into("<i", raw, 4 * rng.choice((0, 1, 2, 3, 4, rng.randrange(16))), rng.choice(PARAMS))
            record["op_params"] = bytes(raw)
        elif name == "data":
            record["data"] = base + rng.choice((0, 4, 2, 1, SIZE, SIZE - 4, SIZE - 64, rng.randrange(0, SIZE, 4)))
        else:
            record["src"][0, rng.randrange(8)] = rng.choice([0, *records["id"].tolist()])
    return done


def _extents(records: "np.ndarray[tuple[int], np.dtype[np.void]]", base: int) -> list[tuple[int, int]] | None:
    found = []
    for type_id, ne, nb, data in zip(*(records[f].tolist() for f in ("type", "ne", "nb", "data")), strict=True):
        if type_id not in SIZES or ne[0] % SIZES[T(type_id)].block_size:
            return None
        found.append((data - base, data - base + Tensor(T(type_id), ne, tuple(nb)).nbytes))
    return found
