"""Keys and values on their way into shared memory: blocks of 32 become F16; which of them tensor cores can have so, how blocks of threads
share them, and the arguments that tell both."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyggml.dtypes import SIZES, GGMLType
from pyggml.kernels.cuda.blocks import SIMPLE
from pyggml.kernels.cuda.layout import F16, blocks
from pyggml.kernels.cuda.spec import DeviceAddress, i32, i64
from pyggml.kernels.cuda.unpack import ALIGNMENT

if TYPE_CHECKING:
    from pyggml.kernels.cuda.attention_operands import Operands
    from pyggml.lowering.cuda import Builder
    from pyggml.tensor import Tensor

T = GGMLType
OLDEST = (8, 0)
BLOCKS_A_MULTIPROCESSOR = 2
"""So many are wanted: where rows are few, blocks share the keys."""
TYPES = (*SIMPLE, F16)
"""Of keys and values, by the numbers that kernels know them by."""


def is_packed(*tensors: Tensor) -> bool:
    return any(t.type != F16 for t in tensors)


def is_loaded(*tensors: Tensor) -> bool:
    """Whether keys or values have types, elements and addresses that can be loaded so."""
    step = {F16: 16, **ALIGNMENT}
    return all(
        t.type in TYPES
        and not (t.type == F16 and t.nb[0] != 2)
        and all(b % step.get(t.type, 2) == 0 for b in (t.data, *t.nb[1:]))
        for t in tensors
    )


def is_tiled(cc: tuple[int, int], node: Tensor, x: Operands) -> bool:
    """Whether tensor cores can do this attention, but for the sizes of its heads: this GPU, these types, heads of whole tiles,
    addresses that are aligned."""
    unit = 32 if is_packed(x.k, x.v) else 16
    if cc < OLDEST or x.q.ne[0] % unit or x.v.ne[0] % unit or x.k.ne[2] != x.v.ne[2] or not is_loaded(x.k, x.v):
        return False
    if x.q.nb[0] != 4 or node.nb[0] != 4 or x.k.ne[2] * x.q.ne[3] >= 65536:
        return False
    return all(b % 8 == 0 for t in (x.q, node) for b in (t.data, *t.nb[1:]))


def layout_of(of: str, t: Tensor) -> dict[str, int]:
    """Number of the type, bytes of a block, where its quants begin, as arguments of keys ("k") or values ("v")."""
    size = SIZES[t.type]
    start = size.type_size - (32 if t.type == T.Q8_0 else 16)
    return {f"kind_{of}": TYPES.index(t.type), f"size_{of}": size.type_size, f"start_{of}": start}


class Tiled(NamedTuple):
    """sums, meta: work memory of blocks that share the keys, and how many do, `steps` times what their kernel takes at a time each;
    kind ... start: `layout_of` keys and values; ticket: of the blocks that share."""

    sums: i64
    meta: i64
    splits: i32
    steps: i32
    kind_k: i32
    size_k: i32
    start_k: i32
    kind_v: i32
    size_v: i32
    start_v: i32
    ticket: i64


def tiled(builder: Builder, x: Operands, row_blocks: int = 0, steps: int = 0) -> Tiled:
    """`row_blocks`: of all rows of the heads that have the same keys; `steps`: in which a kernel takes all keys. Without them no blocks
    share keys."""
    _, n_tokens, n_head, n_batch = x.q.ne
    lists, size = x.k.ne[2] * n_batch, x.v.ne[0]  # of keys; of a row of values
    splits = 1
    if row_blocks:
        enough = blocks(BLOCKS_A_MULTIPROCESSOR * builder.multiprocessors, row_blocks * lists)
        splits = max(1, min(steps, enough, 65535))
    sums: int | DeviceAddress = 0
    meta: int | DeviceAddress = 0
    ticket: int | DeviceAddress = 0
    if splits > 1:
        entries = n_batch * n_tokens * n_head * splits
        work = builder.scratch(entries * 4 * (size + 2))
        sums, meta, ticket = work.at(), work.at(entries * 4 * size), builder.counters(row_blocks * lists)
    return Tiled(
        sums=sums, meta=meta, splits=splits, steps=blocks(steps, splits), **layout_of("k", x.k), **layout_of("v", x.v),
        ticket=ticket,
    )  # fmt: skip


def block_halves():
    """-> f(to, row, i, kind, size, start): values i to i + 7 of a row of blocks as F16 in shared memory, i a multiple of 8.

    size: bytes of a block; start: where its quants begin, behind scale, minimum and fifth bits. Other types: F16.
    """
    from pyggml.kernels.cuda import device as d
    from pyggml.kernels.cuda.unpack_words import LOW, fifths, levels
    from pyggml.quants.iq4_nl import LEVELS

    fifth, look_up = fifths(), levels(LEVELS)
    q4_0, q5_0, q8_0, iq4_nl, f16 = (TYPES.index(t) for t in (T.Q4_0, T.Q5_0, T.Q8_0, T.IQ4_NL, F16))

    @d.inline
    def two(q, k, by, low):
        """Bytes k and k + 1 as values."""
        x = d.fma(d.f32(d.i32(q << (24 - 8 * k)) >> 24), by, low)
        return d.pack_f16(x, d.fma(d.f32(d.i32(q << (16 - 8 * k)) >> 24), by, low))

    @d.inline
    def halves(to, row, i, kind, size, start):
        if kind == f16:
            w0, w1, w2, w3 = d.ld_i32x4(row + i * 2)
            d.sst_i32x4(to, w0, w1, w2, w3)
        else:
            b = row + (i >> 5) * size
            inside = i & 31
            at = b + start + (inside if kind == q8_0 else inside & 8)
            odd = at & 2
            select = 0x5432 if odd else 0x3210
            w0, w1, w2 = d.ld_i32(at - odd), d.ld_i32(at - odd + 4), d.ld_i32(at + 4 + odd)
            q, p = d.permute(w0, w1, select), d.permute(w1, w2, select)
            by = d.ld_f16(b)
            low = d.f32(0)
            if kind != q8_0:
                shift = (inside >> 4) * 4
                q, p = d.i32((q >> shift) & LOW), d.i32((p >> shift) & LOW)
            if start > 4:  # four bytes of fifth bits lie before the quants
                bits = d.ld_u8(b + start - 4 + (inside >> 3))
                q, p = d.i32(q | fifth(bits, 0)), d.i32(p | fifth(bits, 4))
            if start & 3 == 0:  # a minimum lies behind the scale
                low = d.ld_f16(b + 2)
            if kind == q4_0:
                low = by * d.f32(-8)
            if kind == q5_0:
                low = by * d.f32(-16)
            if kind == iq4_nl:
                q, p = look_up(q), look_up(p)
            d.sst_i32x4(to, two(q, 0, by, low), two(q, 2, by, low), two(p, 0, by, low), two(p, 2, by, low))

    return halves
