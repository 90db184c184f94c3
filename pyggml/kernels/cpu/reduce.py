"""SUM, SUM_ROWS, MEAN, CUMSUM, ARGMAX, COUNT_EQUAL: many elements to one number. Knows no norm.

What a whole tensor adds up to is found in two steps: a part of each stretch of CHUNK elements, then the parts in order,
so that the result is the same for any number of threads.
Sources: ggml-cpu/ops.cpp: ggml_compute_forward_sum and the five of these names; vec.h: ggml_vec_argmax_f32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyggml.dtypes import GGMLType
from pyggml.jit import Spec
from pyggml.kernels.cpu.layout import FLOATS, layout_of, refuse_types
from pyggml.ops import Op

if TYPE_CHECKING:
    from pyggml.lowering.cpu import Builder
    from pyggml.tensor import Tensor

CHUNK = 4096


def why_not(node: Tensor) -> str | None:
    if node.op == Op.SUM:
        return refuse_types(FLOATS, node.src[0])
    if node.op == Op.COUNT_EQUAL:
        return refuse_types([GGMLType.I32], *node.src[:2])
    return refuse_types([GGMLType.F32], node.src[0])


def lower(builder: Builder, node: Tensor) -> None:
    a = node.src[0]
    assert a is not None
    if node.op in (Op.SUM, Op.COUNT_EQUAL):
        parts = builder.scratch(8 * a.nrows * -(-a.ne[0] // CHUNK))
        spec = Spec("reduce", "sums", (layout_of(a),)) if node.op == Op.SUM else Spec("reduce", "counts")
        total = Spec("reduce", "total", (layout_of(node),))
        builder.step(spec, None, node.src[: 1 + (node.op == Op.COUNT_EQUAL)], writes=(parts,))
        builder.step(total, node, args=TotalArgs(a.nrows * -(-a.ne[0] // CHUNK)), reads=(parts,))
    elif node.op in (Op.SUM_ROWS, Op.MEAN):
        divisor = a.ne[0] if node.op == Op.MEAN else 1
        builder.step(Spec("reduce", "row_sums", (layout_of(a),)), node, (a,), args=RowSumArgs(divisor))
    else:
        spec = Spec("reduce", "cumsum") if node.op == Op.CUMSUM else Spec("reduce", "argmax", (layout_of(a),))
        builder.step(spec, node, (a,))


def _stretch(kind_a):
    """-> f(x, begin, end, stride): the sum of some elements of a row. Four sums of 16 lanes, added in a fixed order."""
    from pyggml import simd as v
    from pyggml.kernels.cpu import convert

    load = convert.loader(kind_a)

    @v.device
    def total(x, begin, end, stride):
        s0 = s1 = s2 = s3 = v.zero_f32()
        whole = begin + (end - begin) // 64 * 64
        for i in range(begin, whole, 64):
            s0, s1 = s0 + load(x, i, 16, stride), s1 + load(x, i + 16, 16, stride)
            s2, s3 = s2 + load(x, i + 32, 16, stride), s3 + load(x, i + 48, 16, stride)
        for i in range(whole, end, 16):
            s0 = s0 + load(x, i, min(16, end - i), stride)
        return v.hsum((s0 + s1) + (s2 + s3))

    return total


def sums(kind_a):
    """-> kernel: the sum of each chunk, an f32 in every eighth byte of scratch."""
    from pyggml import simd as v
    from pyggml.kernels.cpu import record

    U = v.U
    stretch, a = _stretch(kind_a), record.row("src0", shape="src0")
    rows, ne0, nba, out = record.rows("src0"), record.field("src0.ne"), record.field("src0.nb"), record.field("scratch")

    def kernel(step, ith, nth, thread):
        n, stride = ne0(step), nba(step)
        chunks = (n + CHUNK - 1) // CHUNK
        count = rows(step) * chunks
        for item in range(count * ith // nth, count * (ith + 1) // nth):
            begin = item % chunks * CHUNK
            total = stretch(a(step, item // chunks), begin, min(n, begin + CHUNK), stride)
            v.put_f32(out(step) + U(8 * item), total)

    return kernel


def counts():
    """-> kernel: in how many places of each chunk two rows of I32 are equal, an i64 in scratch."""
    from pyggml import simd as v
    from pyggml.kernels.cpu import record

    U = v.U
    a, b = record.row("src0", shape="src0"), record.row("src1", shape="src0")
    rows, ne0, out = record.rows("src0"), record.field("src0.ne"), record.field("scratch")
    nba, nbb = record.field("src0.nb"), record.field("src1.nb")

    def kernel(step, ith, nth, thread):
        n, sa, sb = ne0(step), nba(step), nbb(step)
        chunks = (n + CHUNK - 1) // CHUNK
        count = rows(step) * chunks
        for item in range(count * ith // nth, count * (ith + 1) // nth):
            x, y = a(step, item // chunks), b(step, item // chunks)
            begin = item % chunks * CHUNK
            equal = 0
            for i in range(begin, min(n, begin + CHUNK)):
                equal += v.i32_at(x + U(i * sa)) == v.i32_at(y + U(i * sb))
            v.put_i64(out(step) + U(8 * item), equal)

    return kernel


class TotalArgs(NamedTuple):
    """numbers: how many lie in scratch."""

    numbers: int


def total(kind_d):
    """-> kernel: the sum of what lies in scratch: f32 for float types, else i64. Takes TotalArgs."""
    import numpy as np

    from pyggml import simd as v
    from pyggml.kernels.cpu import convert, record, step_args

    U = v.U
    data, count, parts = record.field("dst.data"), step_args.readers(TotalArgs).numbers, record.field("scratch")
    ne0 = record.field("dst.ne")
    if kind_d == "i64":

        def kernel(step, ith, nth, thread):
            if ith == 0:
                all_of_them = 0
                for i in range(count(step)):
                    all_of_them += v.i64_at(parts(step) + U(8 * i))
                v.put_i64(data(step), all_of_them)

        return kernel
    store = convert.storer(kind_d)

    def kernel_of_floats(step, ith, nth, thread):
        if ith == 0:
            all_of_them = 0.0
            for i in range(count(step)):
                all_of_them += np.float64(v.f32_at(parts(step) + U(8 * i)))
            # 1 element; LLVM 22 writes two of BF16 where the number of lanes is a constant
            store(data(step), 0, v.splat_f32(np.float32(all_of_them)), ne0(step), 0)

    return kernel_of_floats


class RowSumArgs(NamedTuple):
    """divisor: what each sum is divided by."""

    divisor: int


def row_sums(kind_a):
    """-> kernel: the sum of each row over the divisor, as F32. Takes RowSumArgs."""
    import numpy as np

    from pyggml import simd as v
    from pyggml.kernels.cpu import record, step_args

    stretch, d, a = _stretch(kind_a), record.row("dst"), record.row("src0")
    rows, ne0, nba = record.rows("dst"), record.field("src0.ne"), record.field("src0.nb")
    divisor, aborted = step_args.readers(RowSumArgs).divisor, record.aborted()

    def kernel(step, ith, nth, thread):
        n, count, stride = ne0(step), rows(step), nba(step)
        for row in range(count * ith // nth, count * (ith + 1) // nth):
            x = a(step, row)
            whole = 0.0
            for begin in range(0, n, CHUNK):
                if aborted(step):
                    return
                whole += np.float64(stretch(x, begin, min(n, begin + CHUNK), stride))
            v.put_f32(d(step, row), np.float32(whole / divisor(step)))

    return kernel


def cumsum():
    """-> kernel: the sum so far, in float64, at each place of a row; elements may lie apart."""
    import numpy as np

    from pyggml import simd as v
    from pyggml.kernels.cpu import record

    U = v.U
    d, a, rows, ne0 = record.row("dst"), record.row("src0"), record.rows("dst"), record.field("dst.ne")
    nbd, nba = record.field("dst.nb"), record.field("src0.nb")

    def kernel(step, ith, nth, thread):
        n, count, sd, sa = ne0(step), rows(step), nbd(step), nba(step)
        for row in range(count * ith // nth, count * (ith + 1) // nth):
            z, x = d(step, row), a(step, row)
            so_far = 0.0
            for i in range(n):
                so_far += np.float64(v.f32_at(x + U(i * sa)))
                v.put_f32(z + U(i * sd), np.float32(so_far))

    return kernel


def argmax(kind_a):
    """-> kernel: in each row the place of the largest element, of equal ones the last. A NaN is no maximum, but what
    stands before it counts no more (0 if nothing stands behind it and it was the last that could have been one)."""
    import numpy as np

    from pyggml import simd as v
    from pyggml.kernels.cpu import convert, record

    U = v.U
    a, load = record.row("src0", shape="src0"), convert.loader(kind_a)
    n_rows, ne0, nba = record.field("dst.ne"), record.field("src0.ne"), record.field("src0.nb")
    data, nbd = record.field("dst.data"), record.field("dst.nb")
    lowest, aborted = v.constant("f32", [-np.inf] * 16), record.aborted()

    @v.device
    def one_by_one(x, n, stride):
        """vec.h: ggml_vec_argmax_f32, where MAX(top, NaN) is NaN and MAX(NaN, y) is y."""
        top, at = np.float32(-np.inf), 0
        for i in range(n):
            y = v.f32_at(x + U(i * stride))
            top = top if top > y else y
            if top == y:
                at = i
        return at

    @v.device
    def part(x, i, n, stride):
        """16 elements; what lies behind the row is -inf."""
        k = min(16, n - i)
        y = load(x, i, k, stride)
        return v.select_part(y, np.float32(-np.inf), k) if k < 16 else y

    def kernel(step, ith, nth, thread):
        n, count, stride = ne0(step), n_rows(step), nba(step)
        for row in range(count * ith // nth, count * (ith + 1) // nth):
            x = a(step, row)
            top, nans = lowest(), 0
            for begin in range(0, n, CHUNK):
                if aborted(step):
                    return
                for i in range(begin, min(n, begin + CHUNK), 16):
                    y = part(x, i, n, stride)
                    nans |= v.nan_bits(y, y)
                    top = v.maximum(y, top)
            at = 0
            if nans:
                at = one_by_one(x, n, stride)
            else:
                most = v.splat_f32(v.hmax(top))
                i = (n - 1) // 16 * 16
                while i >= 0:
                    found = v.equal_bits(part(x, i, n, stride), most) & ((1 << min(16, n - i)) - 1)
                    if found:
                        at = i + v.highest_bit(found)
                        break
                    i -= 16
            v.put_i32(data(step) + U(row * nbd(step)), np.int32(at))

    return kernel
