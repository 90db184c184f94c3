"""What attention does with 64 rows of keys or values of one type: the only part of it that knows how a type's bytes are
unpacked. Knows no mask, no scale, no tensor.

The kernels of FLASH_ATTN_EXT call these through their addresses, so that there is one kernel a type and none for pairs
of types. They take the address of a CALL record; the other two arguments of a kernel have no meaning.
"""

from __future__ import annotations

import numpy as np

from pyggml.dtypes import SIZES, GGMLType
from pyggml.jit import CALL as CALLED
from pyggml.jit import Spec

CALL = np.dtype(
    [
        ("rows", "<u8"),  # address of the first row
        ("stride", "<u8"),  # bytes from one row to the next
        ("count", "<i8"),  # rows
        ("n", "<i8"),  # elements a row
        ("columns", "<u8"),  # address of what belongs to each column
        ("column_stride", "<u8"),  # bytes from one column's to the next
        ("out", "<u8"),
        ("out_stride", "<u8"),
        ("zeros", "<u8"),  # bit j of the first word: the number of row j is 0 for some column; of the second: for all
        ("zeros_for_all", "<u8"),
        ("finite", "<i8"),  # unpack: 1 = put 0 in the place of what is not finite; afterwards 2 if there was such
        ("ahead", "<u8"),  # scores, weigh: bytes from a row to the one that is asked for meanwhile
        ("pad", "<u8", 4),
    ]
)
assert CALL.itemsize == 128

MAX_COLUMNS = 4


def columns_at_once(columns: int, *types: GGMLType) -> int:
    """How many columns share a row once it is unpacked: as even a cut as possible into groups of up to 4. Kernels for
    fewer are there for F16 alone, where unpacking is nothing."""
    if any(t != GGMLType.F16 for t in types):
        return MAX_COLUMNS
    return -(-columns // -(-columns // MAX_COLUMNS))


def scores_spec(dtype: GGMLType, columns: int) -> Spec:
    return Spec("attention_rows", "scores", (dtype.name.lower(), columns), CALLED)


def weigh_spec(dtype: GGMLType, columns: int) -> Spec:
    return Spec("attention_rows", "weigh", (dtype.name.lower(), columns), CALLED)


def unpack_spec(dtype: GGMLType) -> Spec:
    return Spec("attention_rows", "unpack", (dtype.name.lower(),), CALLED)


def _field(name):
    from pyggml import simd as v

    kind = "u64" if CALL.fields[name][0].kind == "u" else "i64"
    return v.reader(CALL.fields[name][1], kind)


def _thirty_two(name):
    """-> load(row, i): elements i to i + 15 and i + 16 to i + 31 of a row, i a multiple of 32."""
    from pyggml import simd as v
    from pyggml.jit import inline
    from pyggml.kernels.cpu import convert
    from pyggml.kernels.cpu.formats import functions

    U = v.U
    dtype = GGMLType[name.upper()]
    block, size = SIZES[dtype]
    if block == 32:
        half = functions(dtype).half
        first, second = half(0), half(1)

        @inline
        def load(row, i):
            at = row + U((i >> 5) * size)
            return first(at), second(at)

        return load
    sixteen = convert.loader(name)

    @inline
    def load(row, i):
        return sixteen(row, i, 16, size), sixteen(row, i + 16, 16, size)

    return load


def _bytes_of_32(name):
    block, size = SIZES[GGMLType[name.upper()]]
    return 32 * size // block


def _sixteen_part(name):
    """-> load(row, i, n): elements i to i + n - 1, n from 1 to 16; i and n multiples of 16 where there are blocks."""
    from pyggml.jit import inline
    from pyggml.kernels.cpu import convert

    load, size = convert.loader(name), SIZES[GGMLType[name.upper()]].type_size

    @inline
    def part(row, i, n):
        return load(row, i, n, size)

    return part


def _each(parts):
    """-> f(acc, row, stride, ahead, last, i, n, query, apart): every part in turn, each given what the one before has made."""
    from pyggml.jit import inline

    if len(parts) == 1:
        return parts[0]
    first, rest = parts[0], _each(parts[1:])

    @inline
    def both(acc, row, stride, ahead, last, i, n, query, apart):
        acc = first(acc, row, stride, ahead, last, i, n, query, apart)
        return rest(acc, row, stride, ahead, last, i, n, query, apart)

    return both


def scores(name, columns):
    """-> kernel: out[column][row] = row . column, f32; a column's vector is padded with zeros to a multiple of 16."""
    from pyggml import simd as v
    from pyggml.jit import inline

    U = v.U
    at_once, bytes_32 = v.ROWS[columns - 1], _bytes_of_32(name)
    ops = v.ColumnOps(columns, at_once)
    zero, put_totals = ops.zero, ops.put_totals
    load, load_part = _thirty_two(name), _sixteen_part(name)
    rows_at, stride_at, count_at, n_at = (_field(f) for f in ("rows", "stride", "count", "n"))
    columns_at, apart_at, out_at, out_apart_at = (
        _field(f) for f in ("columns", "column_stride", "out", "out_stride")
    )  # fmt: skip

    ahead_at = _field("ahead")

    def whole(r):
        fma = ops.fma_vectors[r]

        @inline
        def step(acc, row, stride, ahead, last, i, n, query, apart):
            at = row + stride * U(min(r, last))
            v.prefetch(at + ahead + U(i * bytes_32 // 32))
            x, y = load(at, i)
            return fma(fma(acc, x, query, apart), y, query + U(64), apart)

        return step

    def part(r):
        fma = ops.fma_vectors[r]

        @inline
        def step(acc, row, stride, ahead, last, i, n, query, apart):
            return fma(acc, load_part(row + stride * U(min(r, last)), i, n), query, apart)

        return step

    @inline
    def nothing(acc, row, stride, ahead, last, i, n, query, apart):
        return acc

    add_32, add_part = _each([whole(r) for r in range(at_once)]), nothing
    if SIZES[GGMLType[name.upper()]].block_size == 1:
        add_part = _each([part(r) for r in range(at_once)])

    def kernel(call, _, __):
        row, stride, count, n = rows_at(call), stride_at(call), count_at(call), n_at(call)
        apart, out, out_apart, ahead = apart_at(call), out_at(call), out_apart_at(call), ahead_at(call)
        for j in range(0, count, at_once):
            last = count - j - 1  # rows beyond the last repeat it
            acc = zero()
            query = columns_at(call)
            for i in range(0, n & -32, 32):
                acc = add_32(acc, row, stride, ahead, last, i, 32, query, apart)
                query += U(128)
            for i in range(n & -32, n, 16):
                acc = add_part(acc, row, stride, ahead, last, i, min(16, n - i), query, apart)
                query += U(64)
            put_totals(out, acc, out_apart)
            row += stride * U(at_once)
            out += U(4 * at_once)

    return kernel


def weigh(name, columns):
    """-> kernel: out[column] = sum over rows of (number of the column for that row) x row, n rounded up to 16; numbers
    f32[column][row]. A row is not looked at for columns whose number is 0."""
    from pyggml import simd as v
    from pyggml.jit import inline

    U = v.U
    wide, narrow = v.ColumnOps(columns, 4), v.ColumnOps(columns, 1)
    load, load_part, bytes_32 = _thirty_two(name), _sixteen_part(name), _bytes_of_32(name)
    rows_at, stride_at, count_at, n_at = (_field(f) for f in ("rows", "stride", "count", "n"))
    columns_at, apart_at, out_at, out_apart_at = (
        _field(f) for f in ("columns", "column_stride", "out", "out_stride")
    )  # fmt: skip
    zeros_at, zeros_for_all_at, ahead_at = _field("zeros"), _field("zeros_for_all"), _field("ahead")
    zero, put, narrow_zero, narrow_put = wide.zero, wide.put, narrow.zero, narrow.put

    def adder(ops):
        f0, f1, f2, f3 = ops

        @inline
        def add_64(acc, row, i, number, apart, ahead):
            v.prefetch(row + ahead + U(i * bytes_32 // 32))
            v.prefetch(row + ahead + U((i + 32) * bytes_32 // 32))
            x, y = load(row, i)
            acc = f1(f0(acc, x, number, apart), y, number, apart)
            x, y = load(row, i + 32)
            return f3(f2(acc, x, number, apart), y, number, apart)

        return add_64

    add, add_seen = adder(wide.fma_numbers), adder(wide.fma_numbers_seen)
    add_part, add_part_seen = narrow.fma_numbers[0], narrow.fma_numbers_seen[0]

    def kernel(call, _, __):
        stride, count, n = stride_at(call), count_at(call), n_at(call)
        numbers, apart, out, out_apart = columns_at(call), apart_at(call), out_at(call), out_apart_at(call)
        some, every, ahead = zeros_at(call), zeros_for_all_at(call), ahead_at(call)
        for i in range(0, n & -64, 64):
            acc = zero()
            row = rows_at(call)
            number = numbers
            for j in range(count):
                if (some >> U(j)) & U(1) == U(0):
                    acc = add(acc, row, i, number, apart, ahead)
                elif (every >> U(j)) & U(1) == U(0):
                    acc = add_seen(acc, row, i, number, apart, ahead)
                row += stride
                number += U(4)
            put(out + U(4 * i), acc, out_apart, 4)
        for i in range(n & -64, n, 16):
            m = min(16, n - i)
            part = narrow_zero()
            row = rows_at(call)
            number = numbers
            for j in range(count):
                if (some >> U(j)) & U(1) == U(0):
                    part = add_part(part, load_part(row, i, m), number, apart)
                elif (every >> U(j)) & U(1) == U(0):
                    part = add_part_seen(part, load_part(row, i, m), number, apart)
                row += stride
                number += U(4)
            narrow_put(out + U(4 * i), part, out_apart, 1)

    return kernel


def unpack(name):
    """-> kernel: out f32[row][n rounded up to 16], `out_stride` bytes a row; what lies behind a row's end is 0."""
    from pyggml import simd as v

    U = v.U
    np = v.np
    load, load_part = _thirty_two(name), _sixteen_part(name)
    rows_at, stride_at, count_at, n_at = (_field(f) for f in ("rows", "stride", "count", "n"))
    out_at, out_apart_at, finite_at = _field("out"), _field("out_stride"), _field("finite")
    finite = U(CALL.fields["finite"][1])

    def kernel(call, _, __):
        row, stride, count, n = rows_at(call), stride_at(call), count_at(call), n_at(call)
        out, apart = out_at(call), out_apart_at(call)
        odd = v.zero_f32()
        for _ in range(count):
            to = out
            for i in range(0, n & -32, 32):
                x, y = load(row, i)
                odd = odd + ((x - x) + (y - y))  # NaN for what is not finite
                v.store(to, x)
                v.store(to + U(64), y)
                to += U(128)
            for i in range(n & -32, n, 16):
                x = load_part(row, i, min(16, n - i))
                odd = odd + (x - x)
                v.store(to, x)
                to += U(64)
            row += stride
            out += apart
        if finite_at(call) == 0 or v.hsum(odd) == np.float32(0):
            return
        v.put_i64(call + finite, 2)
        out = out_at(call)
        for _ in range(count):
            to = out
            for _ in range(0, n, 16):
                x = v.load_f32(to)
                v.store(to, v.where_equal(x - x, x - x, x, v.zero_f32()))
                to += U(64)
            out += apart

    return kernel
