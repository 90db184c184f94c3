"""ARGSORT, TOP_K: numbers of elements in the order of their values. Knows no meaning of them.

Values become unsigned integers of the same order; short rows are sorted by insertion, long ones digit by digit. Both
leave equal values in the order of their numbers. -0 equals 0, and NaNs are last.
Source: ggml-cpu/ops.cpp: ggml_compute_forward_argsort, ggml_compute_forward_top_k, which leave equal values open.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyggml.jit import Spec
from pyggml.ops import Op, SortOrder

if TYPE_CHECKING:
    from pyggml.lowering.cpu import Builder
    from pyggml.tensor import Tensor

SHORT = 48  # elements that insertion sorts sooner
DIGITS, BITS = 4, 8
HEAD = DIGITS * (1 << BITS) * 8  # bytes of counts


def why_not(node: Tensor) -> str | None:
    return None  # the rules of these ops say all


def lower(builder: Builder, node: Tensor) -> None:
    a = node.src[0]
    assert a is not None
    descending = node.op == Op.TOP_K or node.param_i32(0) == SortOrder.DESC
    work = builder.thread_scratch(HEAD + 2 * 8 * a.ne[0])
    builder.step(Spec("argsort", "argsort"), node, (a,), args=SortArgs(int(descending)), writes=[work])


class SortArgs(NamedTuple):
    """descending: 1 = from the largest on."""

    descending: int


def argsort():
    """-> kernel: the first numbers of each row of src0 in order, as many as dst has. Takes SortArgs."""
    from pyggml import simd as v
    from pyggml.kernels.cpu import record, step_args

    U, np = v.U, v.np
    n_of, k_of = record.field("src0.ne"), record.field("dst.ne")
    rows, row, out = record.rows("src0"), record.row("src0", "src0"), record.row("dst", "src0")
    apart, apart_out, descending = (
        record.field("src0.nb"),
        record.field("dst.nb"),
        step_args.readers(SortArgs).descending,
    )
    work, room = record.field("scratch"), record.field("thread_bytes")
    aborted = record.aborted()
    size, mask = 1 << BITS, (1 << BITS) - 1

    @v.device
    def key(bits, down):
        """An integer below 2^32 for the bits of an F32, in the order that is asked for."""
        bits = np.int64(bits) & 0xFFFFFFFF
        if bits & 0x7FFFFFFF > 0x7F800000:
            return np.int64(0xFFFFFFFF)
        if bits == 0x80000000:
            bits = np.int64(0)
        bits = bits ^ 0xFFFFFFFF if bits & 0x80000000 else bits | 0x80000000
        return bits ^ 0xFFFFFFFF if down else bits

    @v.device
    def insert(at, n):
        for i in range(1, n):
            x = v.u64_at(at + U(8 * i))
            j = i
            while j > 0 and v.u64_at(at + U(8 * (j - 1))) > x:
                v.put_i64(at + U(8 * j), np.int64(v.u64_at(at + U(8 * (j - 1)))))
                j -= 1
            v.put_i64(at + U(8 * j), np.int64(x))

    @v.device
    def by_digits(step, counts, at, other, n):
        """Where the sorted ones are."""
        for i in range(DIGITS * size):
            v.put_i64(counts + U(8 * i), 0)
        for i in range(n):
            x = v.u64_at(at + U(8 * i)) >> U(32)
            for digit in range(DIGITS):
                count = counts + U(8 * (digit * size)) + U(8) * ((x >> U(BITS * digit)) & U(mask))
                v.put_i64(count, v.i64_at(count) + 1)
        for digit in range(DIGITS):
            if aborted(step):
                return at
            table = counts + U(8 * (digit * size))
            total = 0
            for i in range(size):
                count = v.i64_at(table + U(8 * i))
                v.put_i64(table + U(8 * i), total)
                total += count
            for i in range(n):
                x = v.u64_at(at + U(8 * i))
                place = table + U(8) * ((x >> U(32 + BITS * digit)) & U(mask))
                to = v.i64_at(place)
                v.put_i64(place, to + 1)
                v.put_i64(other + U(8 * to), np.int64(x))
            at, other = other, at
        return at

    def kernel(step, ith, nth, thread):
        n, k, down = n_of(step), k_of(step), descending(step)
        counts = work(step) + U(thread * room(step))
        first = counts + U(HEAD)
        count = rows(step)
        for r in range(count * ith // nth, count * (ith + 1) // nth):
            x = row(step, r)
            for i in range(n):
                v.put_i64(first + U(8 * i), (key(v.i32_at(x), down) << 32) | i)
                x += U(apart(step))
            at = first
            if n <= SHORT:
                insert(at, n)
            else:
                at = by_digits(step, counts, at, first + U(8 * n), n)
            to = out(step, r)
            for i in range(k):
                v.put_i32(to, v.i32_at(at + U(8 * i)))
                to += U(apart_out(step))

    return kernel
