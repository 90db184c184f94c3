"""GET_ROWS and SET_ROWS: rows chosen by number. Owns the check of those numbers; knows no table's meaning.

Sources: ggml-cpu/ops.cpp: ggml_compute_forward_get_rows, ggml_compute_forward_set_rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyggml.dtypes import GGMLType
from pyggml.jit import Spec, inline
from pyggml.kernels.cpu.copy import READ, WRITTEN
from pyggml.kernels.cpu.kinds import kind, refuse_types
from pyggml.ops import Op

if TYPE_CHECKING:
    from pyggml.backend.cpu import Builder
    from pyggml.tensor import Tensor


def why_not(node: Tensor) -> str | None:
    a = node.src[0]
    if node.op == Op.SET_ROWS:
        return refuse_types(WRITTEN, node) or refuse_types(READ, a)
    return refuse_types([*READ, GGMLType.I32], a) or refuse_types([*WRITTEN, GGMLType.I32], node)


def lower(builder: Builder, node: Tensor) -> None:
    a, numbers = node.src[:2]
    assert a is not None and numbers is not None
    name = "get_rows" if node.op == Op.GET_ROWS else "set_rows"
    builder.step(Spec("rows", name, (kind(node), kind(a), numbers.type.name.lower())), node, (a, numbers))


def _numbers_are_bad(type_n):
    """-> f(step, limit, ith): whether some row number is not below `limit`; thread 0 notes the first one.

    Each thread looks at all of them before it writes anything, so that none begins what another one refuses.
    """
    from pyggml import simd as v
    from pyggml.kernels.cpu import record
    from pyggml.steps import STATUS

    U = v.U
    at = record.element("src1")
    n0, n1, n2 = (record.field("src1.ne", i) for i in range(3))
    stride = record.field("src1.nb")
    status, index = record.field("status"), record.field("index")
    read = v.i32_at if type_n == "i32" else v.i64_at
    abort, step_at, row_at, limit_at = (U(STATUS.fields[n][1]) for n in ("abort", "step", "row", "limit"))

    @inline
    def bad(step, limit, ith):
        for i2 in range(n2(step)):
            for i1 in range(n1(step)):
                number = at(step, 0, i1, i2, 0)
                for _ in range(n0(step)):
                    found = read(number)
                    if found < 0 or found >= limit:
                        if ith == 0:
                            note = status(step)
                            v.put_i64(note + step_at, index(step))
                            v.put_i64(note + row_at, found)
                            v.put_i64(note + limit_at, limit)
                            v.atomic_store(note + abort, 2)
                        return True
                    number += U(stride(step))
        return False

    return bad


def get_rows(kind_d, kind_a, type_n):
    """-> kernel: row r of the result is row numbers[r] of the table."""
    from pyggml import simd as v
    from pyggml.kernels.cpu import elements, record

    bad, convert = _numbers_are_bad(type_n), elements.converter(kind_d, kind_a)
    read = v.i32_at if type_n == "i32" else v.i64_at
    rows, limit, ne0 = record.rows("dst"), record.field("src0.ne", 1), record.field("dst.ne", 0)
    d, a, number = record.row("dst"), record.element("src0"), record.element("src1")
    ne1, ne2 = record.field("dst.ne", 1), record.field("dst.ne", 2)
    nbd, nba = record.field("dst.nb"), record.field("src0.nb")

    def kernel(step, ith, nth):
        if bad(step, limit(step), ith):
            return
        count = rows(step)
        for row in range(count * ith // nth, count * (ith + 1) // nth):
            i1, i2, i3 = row % ne1(step), row // ne1(step) % ne2(step), row // ne1(step) // ne2(step)
            source = a(step, 0, read(number(step, i1, i2, i3, 0)), i2, i3)
            convert(d(step, row), nbd(step), source, nba(step), 0, ne0(step))

    return kernel


def set_rows(kind_d, kind_a, type_n):
    """-> kernel: row numbers[r] of the table becomes row r of the source; of equal numbers the last one counts.

    A row of the table belongs to one thread, by its number, so that the order of writes is that of the source.
    """
    from pyggml import simd as v
    from pyggml.kernels.cpu import elements, record

    U = v.U
    bad, convert = _numbers_are_bad(type_n), elements.converter(kind_d, kind_a)
    read = v.i32_at if type_n == "i32" else v.i64_at
    ne0, ne1, ne2, ne3 = (record.field("src0.ne", i) for i in range(4))
    d, a, number = record.element("dst"), record.element("src0"), record.element("src1")
    n1, n2, limit = record.field("src1.ne", 1), record.field("src1.ne", 2), record.field("dst.ne", 1)
    nbd, nba, row_a, stride = (
        record.field("dst.nb"), record.field("src0.nb"), record.field("src0.nb", 1), record.field("src1.nb"),
    )  # fmt: skip

    def kernel(step, ith, nth):
        if bad(step, limit(step), ith):
            return
        n, sd, sa = ne0(step), nbd(step), nba(step)
        for i3 in range(ne3(step)):
            for i2 in range(ne2(step)):
                source = a(step, 0, 0, i2, i3)
                at = number(step, 0, i2 % n1(step), i3 % n2(step), 0)
                for _ in range(ne1(step)):
                    row = read(at)
                    if row % nth == ith:
                        convert(d(step, 0, row, i2, i3), sd, source, sa, 0, n)
                    source += U(row_a(step))
                    at += U(stride(step))

    return kernel
