"""GET_ROWS and SET_ROWS: rows chosen by number. Knows no table's meaning; numbers are checked as indices.py says.

Sources: ggml-cpu/ops.cpp: ggml_compute_forward_get_rows, ggml_compute_forward_set_rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyggml.dtypes import SIZES, GGMLType
from pyggml.jit import Spec, inline
from pyggml.kernels.cpu import dequant_fallback
from pyggml.kernels.cpu.formats import CONVERTIBLE, DEQUANTISED_FIRST, DEQUANTIZABLE, QUANTIZABLE, work_bytes
from pyggml.kernels.cpu.indices import NumberArgs
from pyggml.kernels.cpu.layout import FLOATS, SOURCES, layout_of, refuse_types
from pyggml.ops import Op

if TYPE_CHECKING:
    from pyggml.lowering.cpu import Builder
    from pyggml.tensor import Tensor


def why_not(node: Tensor) -> str | None:
    a = node.src[0]
    if node.op == Op.SET_ROWS:
        return refuse_types(QUANTIZABLE, node) or refuse_types(FLOATS, a)
    reason = refuse_types([*DEQUANTIZABLE, GGMLType.I32], a) or refuse_types([*CONVERTIBLE, GGMLType.I32], node)
    if reason is None and a is not None and a.type in DEQUANTISED_FIRST and node.nb[0] != 4:
        return f"rows of {a.type.name} into elements that lie apart"
    return reason


def lower(builder: Builder, node: Tensor) -> None:
    a, numbers = node.src[:2]
    assert a is not None and numbers is not None
    if node.op == Op.GET_ROWS and a.type in DEQUANTISED_FIRST:
        args = dequant_fallback.GetRowsArgs(row_blocks=a.ne[0] // SIZES[a.type].block_size)
        builder.step(
            Spec("dequant_fallback", "get_rows"),
            node,
            (a, numbers),
            args=args,
            calls=[dequant_fallback.decoder(a.type)],
        )
        return
    if node.op == Op.GET_ROWS:
        builder.step(Spec("rows", "get_rows", (layout_of(node), layout_of(a))), node, (a, numbers), args=NumberArgs())
        return
    wide = int(numbers.type == GGMLType.I64)
    if SIZES[node.type].block_size > 1 and a.type != node.type:
        spec, room = (
            Spec("rows", "set_quantised_rows", (layout_of(node),)),
            builder.thread_scratch(work_bytes(node.type)),
        )
        builder.step(spec, node, (a, numbers), args=QuantiseArgs(wide, SOURCES.index(layout_of(a))), writes=[room])
    elif node.ne[0] == 1:
        room = builder.thread_scratch(64)
        spec = Spec("rows", "set_elements", (layout_of(node), layout_of(a)))
        builder.step(spec, node, (a, numbers), args=NumberArgs(wide), writes=[room])
    else:
        builder.step(
            Spec("rows", "set_rows", (layout_of(node), layout_of(a))), node, (a, numbers), args=NumberArgs(wide)
        )


def get_rows(kind_d, kind_a):
    """-> kernel: row r of the result is row numbers[r] of the table. Takes NumberArgs."""
    from pyggml.kernels.cpu import convert, indices, record, step_args

    bad, choose = indices.numbers_are_bad(step_args.readers(NumberArgs).wide), indices.chosen()
    convert_row = convert.converter(kind_d, kind_a)
    rows, limit, ne0 = record.rows("dst"), record.field("src0.ne", 1), record.field("dst.ne", 0)
    d, a, number = record.row("dst"), record.element("src0"), record.element("src1")
    ne1, ne2 = record.field("dst.ne", 1), record.field("dst.ne", 2)
    nbd, nba = record.field("dst.nb"), record.field("src0.nb")

    def kernel(step, ith, nth, thread):
        if bad(step, limit(step), ith):
            return
        count = rows(step)
        for row in range(count * ith // nth, count * (ith + 1) // nth):
            i1, i2, i3 = row % ne1(step), row // ne1(step) % ne2(step), row // ne1(step) // ne2(step)
            which = choose(step, number(step, i1, i2, i3, 0), False, limit(step))
            if which < 0:
                return
            convert_row(d(step, row), nbd(step), a(step, 0, which, i2, i3), nba(step), 0, ne0(step))

    return kernel


def set_rows(kind_d, kind_a):
    """-> kernel. Takes NumberArgs."""
    from pyggml.kernels.cpu import convert, record, step_args

    convert_row = convert.converter(kind_d, kind_a)
    nbd, nba = record.field("dst.nb"), record.field("src0.nb")

    @inline
    def write(step, thread, target, source, n):
        convert_row(target, nbd(step), source, nba(step), 0, n)

    return _set_rows_with(write, step_args.readers(NumberArgs).wide)


class QuantiseArgs(NamedTuple):
    """wide: as indices.NumberArgs has it. source: the kind of src0, its position in layout.SOURCES."""

    wide: int
    source: int


def set_quantised_rows(kind_d):
    """-> kernel. scratch: formats.work_bytes a thread. Takes QuantiseArgs."""
    from pyggml.kernels.cpu import convert, record, step_args

    quantise, room = convert.quantiser(kind_d), record.thread_room()
    nba, args = record.field("src0.nb"), step_args.readers(QuantiseArgs)
    number_of_kind = args.source

    @inline
    def write(step, thread, target, source, n):
        quantise(target, source, nba(step), 0, n, number_of_kind(step), room(step, thread))

    return _set_rows_with(write, args.wide)


def _set_rows_with(write, is_wide):
    """-> kernel: row numbers[r] of the table becomes row r of the source; of equal numbers the last one counts. `is_wide`:
    the reader of an argument as NumberArgs has it.

    A row of the table belongs to one thread, by its number, so that the order of writes is that of the source.
    """
    from pyggml import simd as v
    from pyggml.kernels.cpu import indices, record

    U = v.U
    bad, choose = indices.numbers_are_bad(is_wide), indices.chosen()
    ne0, ne1, ne2, ne3 = (record.field("src0.ne", i) for i in range(4))
    d, a, number = record.element("dst"), record.element("src0"), record.element("src1")
    n1, n2, limit = record.field("src1.ne", 1), record.field("src1.ne", 2), record.field("dst.ne", 1)
    row_a, stride, aborted = record.field("src0.nb", 1), record.field("src1.nb"), record.aborted()

    def kernel(step, ith, nth, thread):
        if bad(step, limit(step), ith):
            return
        n, wide = ne0(step), is_wide(step) != 0
        for i3 in range(ne3(step)):
            for i2 in range(ne2(step)):
                source = a(step, 0, 0, i2, i3)
                at = number(step, 0, i2 % n1(step), i3 % n2(step), 0)
                for _ in range(ne1(step)):
                    row = choose(step, at, wide, limit(step))
                    if row < 0 or aborted(step):
                        return
                    if row % nth == ith:
                        write(step, thread, d(step, 0, row, i2, i3), source, n)
                    source += U(row_a(step))
                    at += U(stride(step))

    return kernel


def set_elements(kind_d, kind_a):
    """-> kernel for rows of one element, as a transposed V cache has them: sixteen are converted at once. scratch:
    64 bytes a thread. Takes NumberArgs.

    Each thread has a stretch of the table's rows.
    """
    from pyggml import simd as v
    from pyggml.kernels.cpu import convert, indices, record, step_args

    U = v.U
    is_wide = step_args.readers(NumberArgs).wide
    bad, read = indices.numbers_are_bad(is_wide), indices.number_reader()
    ne1, ne2, ne3 = (record.field("src0.ne", i) for i in range(1, 4))
    d, a, number = record.element("dst"), record.element("src0"), record.element("src1")
    n1, n2, limit = record.field("src1.ne", 1), record.field("src1.ne", 2), record.field("dst.ne", 1)
    row_d, row_a, stride = record.field("dst.nb", 1), record.field("src0.nb", 1), record.field("src1.nb")
    room_of, aborted = record.thread_room(), record.aborted()
    dense, apart, store = convert.loader(kind_a), convert.loader(kind_a + "/"), convert.storer(kind_d)
    size_d, size_a, same = convert.type_size(kind_d), convert.type_size(kind_a), kind_d == kind_a

    @inline
    def put(to, room):
        if size_d == 4:
            v.put_i32(to, v.i32_at(room))
        else:
            v.put_u16(to, v.u16_at(room))

    def kernel(step, ith, nth, thread):
        if bad(step, limit(step), ith):
            return
        n, wide, sa, sd = ne1(step), is_wide(step) != 0, row_a(step), row_d(step)
        first, end = limit(step) * ith // nth, limit(step) * (ith + 1) // nth
        room = room_of(step, thread)
        for i3 in range(ne3(step)):
            for i2 in range(ne2(step)):
                source, target = a(step, 0, 0, i2, i3), d(step, 0, 0, i2, i3)
                at = number(step, 0, i2 % n1(step), i3 % n2(step), 0)
                for i in range(0, n, 16):
                    k = min(16, n - i)
                    if aborted(step):
                        return
                    if same:
                        pass
                    elif sa == size_a:
                        store(room, 0, dense(source, i, k, sa), 16, size_d)
                    else:
                        store(room, 0, apart(source, i, k, sa), 16, size_d)
                    for j in range(k):
                        row = read(at, wide)
                        if row >= first and row < end:
                            put(target + U(row * sd), source + U((i + j) * sa) if same else room + U(j * size_d))
                        at += U(stride(step))

    return kernel
