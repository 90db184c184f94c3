"""Activations as bytes: rows of F32 quantised for products with blocks of integers.

For each column a row of i8, padded with zeros to a multiple of GROUP values, then for each 32 values two f32: their scale
d and d x the sum of their bytes (what a weight's minimum is multiplied by). ggml's Q8_1 with scales that are not rounded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyggml.kernels.cuda.launch_args import Extents, Place, entry, extents, place
from pyggml.kernels.cuda.layout import F32, blocks, source
from pyggml.kernels.cuda.spec import Spec, i32, i64
from pyggml.kernels.cuda.unpack import UNPACKED
from pyggml.ops import Op

if TYPE_CHECKING:
    from pyggml.kernels.cuda.spec import DeviceAddress
    from pyggml.lowering.cuda import Builder
    from pyggml.tensor import Tensor

GROUP = 128
THREADS = 128


class Activations(NamedTuple):
    """bytes: where the rows of i8 begin, `step` apart; scales: the pairs of f32, 8 x step / 32 apart.

    Column i1 of batch (i2, i3) is row i1 + ne1 x (i2 + ne2 x i3).
    """

    bytes: DeviceAddress
    scales: DeviceAddress
    step: int


def quantized(builder: Builder, b: Tensor) -> Activations:
    """The rows of b, quantised once for all products that read them."""
    key = "q8", b.data, b.ne, b.nb
    found: Activations | None = builder.remembered(key)
    if found is not None:
        return found
    made = room(builder, b)
    args = QuantizeArgs(q=made.bytes, scales=made.scales, step=made.step, b=place(b), n=extents(b.ne))
    grid = (b.nrows, min(65535, made.step // GROUP))
    builder.launch(Spec("activations", "quantize"), grid, THREADS, args)
    builder.remember(key, made, b)
    return made


def room(builder: Builder, b: Tensor) -> Activations:
    """Work memory for the rows of b."""
    step = blocks(b.ne[0], GROUP) * GROUP
    n_bytes = step * b.nrows
    scratch = builder.scratch(n_bytes + n_bytes // 4)
    return Activations(scratch.at(), scratch.at(n_bytes), step)


def wanted(builder: Builder, node: Tensor, row: int | None = None) -> Activations | None:
    """Room for the bytes of `node` in rows of `row` elements (None: its own), where a product of a later node asks for them: its maker is to fill it, and products find it
    there. None: nobody asks."""
    for reader in builder.readers_of(node):
        if reader.op not in (Op.MUL_MAT, Op.MUL_MAT_ID):
            continue
        a, b = source(reader, 0), source(reader, 1)
        same = b.data == node.data and b.nbytes == node.nbytes and b.type == F32
        if same and b.ne[0] == (row or node.ne[0]) and b.is_contiguous and node.is_contiguous and a.type in UNPACKED:
            made = room(builder, b)
            builder.made(("q8", b.data, b.ne, b.nb), made, b)
            return made
    return None


class QuantizeArgs(NamedTuple):
    q: i64
    scales: i64
    step: i32
    b: Place
    n: Extents


def quantizing():
    """-> f(q, scales, value): 32 values of a warp's lanes to where each lane's byte and lane 0's pair of scales belong."""
    from pyggml.kernels.cuda import device as d

    @d.inline
    def put(q, scales, value):
        most = d.warp_max(abs(value))
        by = most / d.f32(127)
        level = 0
        if most > d.f32(0):
            level = d.round_i32(value / by)
        total = d.warp_sum(d.f32(level))
        d.st_u8(q, level)
        if d.thread() & 31 == 0:
            d.st_f32x2(scales, by, by * total)

    return put


def quantize():
    """A warp takes 32 values."""
    from pyggml.kernels.cuda import device as d

    put = quantizing()

    @entry(QuantizeArgs, THREADS)
    def kernel(q, scales, step, b, b0, b1, b2, b3, n0, n1, n2):
        row = d.block_x()
        above = d.udiv(row, n1)
        i1 = d.i32(row - above * n1)
        i3 = d.udiv(above, n2)
        i2 = d.i32(above - i3 * n2)
        x = b + i1 * b1 + i2 * b2 + i3 * b3
        i = d.i32(d.block_y() * THREADS + d.thread())
        while i < step:
            value = d.f32(0)
            if i < n0:
                value = d.ld_f32(x + i * b0)
            at = row * d.i64(step) + i
            put(q + at, scales + (at >> 2), value)
            i = d.i32(i + d.blocks_y() * THREADS)

    return kernel
