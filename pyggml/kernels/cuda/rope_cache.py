"""ROPE of queries and keys, and SET_ROWS of keys and values into a cache, in one launch: what stands between the products of a
layer and its attention.

Each is a section of the threads: pairs of the queries' elements, of the keys', which go where their row of the cache is,
and of the values', which are not rotated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from pyggml.dtypes import GGMLType
from pyggml.kernels.cuda.launch_args import entry
from pyggml.kernels.cuda.layout import F32, FLOATS, KINDS, THREADS, apart, blocks, disjoint, source
from pyggml.kernels.cuda.rope import Turning, threads_a_row, turning
from pyggml.kernels.cuda.spec import Spec, i32, i64
from pyggml.ops import Op

if TYPE_CHECKING:
    from pyggml.kernels.cuda.matmul import Inside
    from pyggml.lowering.cuda import Builder
    from pyggml.tensor import Tensor

SECTIONS = ("q", "k", "v")


class Found(NamedTuple):
    """The nodes of the sections; sets: SET_ROWS of k and of v."""

    q: Tensor | None
    k: Tensor
    sets: tuple[Tensor, ...]


def take(builder: Builder, nodes: list[Tensor], inside: Inside) -> int:
    """One or two ROPEs and the SET_ROWS behind them; -> how many nodes, 0: fewer than two."""
    found = find(nodes, inside)
    n = 1 + (found.q is not None) + len(found.sets)
    if n == 1:
        return 0
    turned = turning(builder, found.k)
    size, _, tokens, _ = source(found.k, 0).ne
    per_row = threads_a_row(size, turned.pairs)
    words: dict[str, Any] = {}
    ends = 0
    for section in SECTIONS:
        words |= dict.fromkeys(
            [f"{name}_{section}" for name in ("y", "y0", "y1", "y2", "kind", "a", "a0", "a1", "a2", "set")], 0
        )
        words |= {f"heads_{section}": 1, f"end_{section}": ends}
        node = {"q": found.q, "k": found.k, "v": found.sets[1] if len(found.sets) > 1 else None}[section]
        if node is None:
            continue
        a, row = source(node, 0), found.sets[0] if section == "k" and found.sets else node
        n_heads, step = (a.ne[1], a.nb[1:3]) if section != "v" else (1, (0, a.nb[1]))
        ends += n_heads * tokens * (per_row if section != "v" else (a.ne[0] + 1) // 2)
        to = (row.nb[0], row.nb[1], row.nb[2]) if row.op == Op.ROPE else (row.nb[0], size * row.nb[0], row.nb[1])
        words |= {
            f"y_{section}": row.data, f"y0_{section}": to[0], f"y1_{section}": to[1], f"y2_{section}": to[2],
            f"kind_{section}": KINDS[row.type], f"a_{section}": a.data, f"a0_{section}": a.nb[0], f"a1_{section}": step[0],
            f"a2_{section}": step[1], f"set_{section}": int(row.op == Op.SET_ROWS), f"heads_{section}": n_heads,
            f"end_{section}": ends,
        }  # fmt: skip
    ids = source(found.sets[0], 1) if found.sets else None
    args = RopeCacheArgs(
        **words, turning=turned, size=size, per_row=per_row, size_v=source(found.sets[1], 0).ne[0] if len(found.sets) > 1 else 0,
        tokens=tokens, ids=0 if ids is None else ids.data, ids0=0 if ids is None else ids.nb[0],
        wide=int(ids is not None and ids.type == GGMLType.I64), limit=found.sets[0].ne[1] if found.sets else 0,
        number=builder.number + 1 + (found.q is not None) + 1, status=builder.status() if found.sets else 0,
    )  # fmt: skip
    builder.launch(Spec("rope_cache", "rope_cache"), (blocks(ends),), THREADS, args)
    return n


def find(nodes: list[Tensor], inside: Inside) -> Found:
    q: Tensor | None = None
    k, rest = nodes[0], nodes[1:]
    if rest and is_plain(k) and is_plain(rest[0]) and alike(k, rest[0]):
        q, k, rest = k, rest[0], rest[1:]
        if not disjoint(q, source(k, 0), k) or not disjoint(k, source(q, 0)):
            q, k, rest = None, nodes[0], nodes[1:]
    if not rest or not is_plain(k) or not is_set(rest[0]):
        return Found(q, k, ())
    first = rest[0]
    rows = source(first, 0)
    a = source(k, 0)
    dense = a.ne[0] * a.ne[1] == rows.ne[0] and rows.ne[1] == a.ne[2] and k.is_contiguous
    if (rows.view_src or rows) is not k or rows.data != k.data or not dense or not inside([k, first]):
        return Found(q, k, ())
    read = [a, source(first, 1), *(() if q is None else (q, source(q, 0)))]
    if not disjoint(first, *read):
        return Found(q, k, ())
    if len(rest) > 1 and is_set(rest[1]):
        second = rest[1]
        v = source(second, 0)
        same = second.src[1] is first.src[1] and v.ne[1] == rows.ne[1] and second.ne[1] == first.ne[1]
        written = [first, *(() if q is None else (q,))]
        if same and disjoint(second, *read, first, v) and disjoint(v, *written):
            return Found(q, k, (first, second))
    return Found(q, k, (first,))


def is_plain(node: Tensor) -> bool:
    """A ROPE of F32, in place or apart from its source."""
    a = source(node, 0)
    return node.op == Op.ROPE and node.type == a.type == F32 and a.ne[3] == 1 and apart(node, a)


def alike(a: Tensor, b: Tensor) -> bool:
    """Whether both turn their pairs by the same angles."""
    same = (
        a.op_params == b.op_params
        and len(a.src) == len(b.src)
        and all(x is y for x, y in zip(a.src[1:], b.src[1:], strict=True))
    )
    return same and a.ne[0] == b.ne[0] and a.ne[2] == b.ne[2]


def is_set(node: Tensor) -> bool:
    """SET_ROWS of a matrix of F32 into one of floats, a row number a row."""
    if node.op != Op.SET_ROWS:
        return False
    b, ids = source(node, 0), source(node, 1)
    flat = b.ne[2:] == node.ne[2:] == (1, 1) and ids.ne[1:] == (1, 1, 1) and b.ne[0] > 1
    return flat and b.type == F32 and node.type in FLOATS


class RopeCacheArgs(NamedTuple):
    """Of each section: where results go, their elements, heads and tokens (or rows of the cache) y0, y1, y2 apart; the source
    likewise; whether ids say the row; heads a token; behind which thread it ends. size: of a head of q and k; size_v: of
    a token's values."""

    y_q: i64
    y0_q: i64
    y1_q: i64
    y2_q: i64
    kind_q: i32
    a_q: i64
    a0_q: i64
    a1_q: i64
    a2_q: i64
    set_q: i32
    heads_q: i32
    end_q: i32
    y_k: i64
    y0_k: i64
    y1_k: i64
    y2_k: i64
    kind_k: i32
    a_k: i64
    a0_k: i64
    a1_k: i64
    a2_k: i64
    set_k: i32
    heads_k: i32
    end_k: i32
    y_v: i64
    y0_v: i64
    y1_v: i64
    y2_v: i64
    kind_v: i32
    a_v: i64
    a0_v: i64
    a1_v: i64
    a2_v: i64
    set_v: i32
    heads_v: i32
    end_v: i32
    turning: Turning
    size: i32
    per_row: i32
    size_v: i32
    tokens: i32
    ids: i64
    ids0: i64
    wide: i32
    limit: i32
    number: i32
    status: i64


def rope_cache():
    from pyggml.kernels.cuda import device as d
    from pyggml.kernels.cuda.convert import access
    from pyggml.kernels.cuda.rope import angles

    _, store = access()
    angle_of = angles()

    @entry(RopeCacheArgs, THREADS)
    def kernel(
        y_q, y0_q, y1_q, y2_q, kind_q, a_q, a0_q, a1_q, a2_q, set_q, heads_q, end_q, y_k, y0_k, y1_k, y2_k, kind_k, a_k,
        a0_k, a1_k, a2_k, set_k, heads_k, end_k, y_v, y0_v, y1_v, y2_v, kind_v, a_v, a0_v, a1_v, a2_v, set_v, heads_v, end_v,
        positions, position_step, rates, factors, factor_step, pairs, offset, halves, magnitude, way, size, per_row, size_v,
        tokens, ids, ids0, wide, limit, number, status,
    ):  # fmt: skip
        i = d.i32(d.block_x() * d.threads() + d.thread())
        if i < end_v:
            y, y0, y1, y2, kind, a, a0, a1, a2 = y_q, y0_q, y1_q, y2_q, kind_q, a_q, a0_q, a1_q, a2_q
            chosen, heads, rotated = set_q, heads_q, pairs
            if i >= end_k:
                i = d.i32(i - end_k)
                y, y0, y1, y2, kind, a, a0, a1, a2 = y_v, y0_v, y1_v, y2_v, kind_v, a_v, a0_v, a1_v, a2_v
                chosen, heads, rotated = set_v, heads_v, d.i32(0)
                size, per_row, offset = size_v, d.i32((size_v + 1) >> 1), d.i32(0)
            elif i >= end_q:
                i = d.i32(i - end_q)
                y, y0, y1, y2, kind, a, a0, a1, a2 = y_k, y0_k, y1_k, y2_k, kind_k, a_k, a0_k, a1_k, a2_k
                chosen, heads = set_k, heads_k
            above = d.udiv(i, per_row)
            p = d.i32(i - above * per_row)
            token = d.udiv(above, heads)
            head = d.i32(above - token * heads)
            row = d.i64(token)
            if chosen != 0:
                row = d.ld_i64(ids + token * ids0) if wide != 0 else d.i64(d.ld_i32(ids + token * ids0))
            if chosen != 0 and (row < 0 or row >= limit):
                d.st_i32x4(status, number, row, row >> 32, limit)
            else:
                x, z = a + head * a1 + token * a2, y + head * y1 + row * y2
                if p < rotated:
                    c, s = angle_of(
                        p, token, tokens, positions, position_step, rates, factors, factor_step, magnitude, way
                    )
                    first = offset + (p if halves else 2 * p)
                    second = first + (pairs if halves else 1)
                    u, v = d.ld_f32(x + first * a0), d.ld_f32(x + second * a0)
                    store(z + first * y0, kind, u * c - v * s)
                    store(z + second * y0, kind, u * s + v * c)
                else:
                    for k in range(2):
                        e = (p - rotated) * 2 + k
                        if e >= offset:
                            e = e + 2 * rotated
                        if e < size:
                            store(z + e * y0, kind, d.ld_f32(x + e * a0))

    return kernel
