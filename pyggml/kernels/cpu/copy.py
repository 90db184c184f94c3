"""CPY, CONT, DUP: elements in order into another type, shape or stride. Knows no arithmetic.

Owns the walk through two shapes; rows are converted by convert.py. Source: ggml-cpu/ops.cpp: ggml_compute_forward_dup.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from pyggml.dtypes import SIZES, GGMLType
from pyggml.jit import Spec, inline
from pyggml.kernels.cpu import dequant_fallback, rows_columns
from pyggml.kernels.cpu.formats import DEQUANTISED_FIRST, DEQUANTIZABLE, QUANTIZABLE, work_bytes
from pyggml.kernels.cpu.layout import FLOATS, SOURCES, layout_of, refuse_types
from pyggml.kernels.cpu.windows import window
from pyggml.tensor import contiguous_strides

if TYPE_CHECKING:
    from pyggml.lowering.cpu import Builder
    from pyggml.tensor import Tensor


def why_not(node: Tensor) -> str | None:
    a = node.src[0]
    assert a is not None
    if a.type == node.type:
        return refuse_types(GGMLType, node, a)
    if {a.type, node.type} == {GGMLType.F32, GGMLType.I32}:
        return None
    allowed = FLOATS if SIZES[node.type].block_size > 1 else DEQUANTIZABLE
    reason = refuse_types(QUANTIZABLE, node) or refuse_types(allowed, a)
    if reason is None and _run(node, a) % (block := max(SIZES[t.type].block_size for t in (node, a))):
        return f"rows of {a.ne[0]} and {node.ne[0]} elements meet inside of blocks of {block}"
    return reason


def lower(builder: Builder, node: Tensor) -> None:
    a = node.src[0]
    assert a is not None
    put(builder, node, a)


def put(builder: Builder, to: Tensor, a: Tensor) -> None:
    """A step that puts the elements of `a` into `to`, in order, converted to its type."""
    if a.type in DEQUANTISED_FIRST and a.type != to.type:
        if to.type == GGMLType.F32 and to.is_contiguous:
            dequant_fallback.unpack(builder, to, a)
            return
        plain = builder.work_tensor(GGMLType.F32, a.ne)
        dequant_fallback.unpack(builder, plain, a)
        a = plain
    run = _run(to, a)
    runs = to.nelements // run
    if a.type == to.type:
        move(builder, to, a)
    elif SIZES[to.type].block_size > 1:
        room, source = builder.thread_scratch(work_bytes(to.type)), SOURCES.index(layout_of(a))
        builder.step(
            Spec("copy", "quantise", (layout_of(to),)), to, (a,), args=QuantiseArgs(run, runs, source), writes=[room]
        )
    else:
        builder.step(Spec("copy", "convert", (layout_of(to), layout_of(a))), to, (a,), args=ConvertArgs(run, runs))


def move(builder: Builder, target: Tensor, source: Tensor) -> None:
    """A step that writes the elements of `source` to `target`, of the same type, in order and as they are."""
    assert source.type == target.type and source.nelements == target.nelements, (source, target)
    alike = _in_one_shape(target, source)
    if alike is not None and (found := rows_columns.kernel_for(*alike)) is not None:
        spec, rows_args = found
        builder.step(spec, alike[0], (alike[1],), args=rows_args)
        return
    size, run = SIZES[target.type], _run(target, source)
    args = MoveArgs(run // size.block_size, target.nelements // run, size.type_size, size.block_size)
    builder.step(Spec("copy", "move_blocks"), target, (source,), args=args)


def _in_one_shape(target: Tensor, source: Tensor) -> tuple[Tensor, Tensor] | None:
    """Both with the same shape, where one is dense and so can have any."""
    if target.ne == source.ne:
        return target, source
    if target.is_contiguous:
        return window(target, source.ne, contiguous_strides(target.type, source.ne), 0), source
    if source.is_contiguous:
        return target, window(source, target.ne, contiguous_strides(source.type, target.ne), 0)
    return None


def _dense_elements(t: Tensor) -> int:
    """How many elements lie one behind the other from the start, as far as whole dimensions do; those of a row that lie
    apart count as well, since they have one stride."""
    size = SIZES[t.type]
    if layout_of(t).endswith("/"):
        return t.ne[0]
    count, step = t.ne[0], t.ne[0] // size.block_size * size.type_size
    for n, nb in zip(t.ne[1:], t.nb[1:], strict=True):
        if n != 1 and nb != step:
            break
        count, step = count * n, step * n
    return count


def _run(node: Tensor, a: Tensor) -> int:
    """Into what runs the elements fall that have one stride in both tensors."""
    return math.gcd(_dense_elements(a), _dense_elements(node))


class ConvertArgs(NamedTuple):
    """length: elements of a run. runs: their number."""

    length: int
    runs: int


def convert(kind_d, kind_a):
    """-> kernel. Takes ConvertArgs."""
    from pyggml.kernels.cpu import convert, record, step_args

    convert_row = convert.converter(kind_d, kind_a)
    nbd, nba = record.field("dst.nb"), record.field("src0.nb")

    @inline
    def write(step, thread, target, source, begin, end):
        convert_row(target, nbd(step), source, nba(step), begin, end)

    return _in_runs(step_args.readers(ConvertArgs), write, convert.block_size(kind_d), convert.block_size(kind_a))


class QuantiseArgs(NamedTuple):
    """length, runs: as ConvertArgs has them. source: the kind of src0, its position in layout.SOURCES."""

    length: int
    runs: int
    source: int


def quantise(kind_d):
    """-> kernel. scratch: formats.work_bytes a thread. Takes QuantiseArgs."""
    from pyggml.kernels.cpu import convert, record, step_args

    quantise_row, room = convert.quantiser(kind_d), record.thread_room()
    nba, args = record.field("src0.nb"), step_args.readers(QuantiseArgs)
    number = args.source

    @inline
    def write(step, thread, target, source, begin, end):
        quantise_row(target, source, nba(step), begin, end, number(step), room(step, thread))

    return _in_runs(args, write, convert.block_size(kind_d), 1)


def _in_runs(args, write, block_d, block_a):
    """-> kernel that calls write(step, thread, target, source, begin, end) for elements of each run, in whole blocks. `args`:
    readers of `length` and `runs`."""
    from pyggml.kernels.cpu import record

    length, number = args.length, args.runs
    start_d, start_a = _element("dst"), _element("src0")
    piece, align = record.piece, max(16, block_d, block_a)

    def kernel(step, ith, nth, thread):
        n, count = length(step), number(step)
        size = (piece(count, n, nth) + align - 1) // align * align
        pieces = (n + size - 1) // size
        for item in range(count * pieces * ith // nth, count * pieces * (ith + 1) // nth):
            run, begin = item // pieces, item % pieces * size
            to, source = start_d(step, run * n, block_d), start_a(step, run * n, block_a)
            write(step, thread, to, source, begin, min(n, begin + size))

    return kernel


class MoveArgs(NamedTuple):
    """length: blocks of a run. runs: their number. size, block: bytes and elements a block."""

    length: int
    runs: int
    size: int
    block: int


def move_blocks():
    """-> kernel. Takes MoveArgs."""
    from pyggml import simd as v
    from pyggml.kernels.cpu import convert, record, step_args

    U, move_elements = v.U, convert.move_elements
    length, number, size_of, block_of = step_args.readers(MoveArgs)
    start_d, start_a, piece = _element("dst"), _element("src0"), record.piece
    nb_d, nb_a, ne_d, ne_a = (record.field(f) for f in ("dst.nb", "src0.nb", "dst.ne", "src0.ne"))

    def kernel(step, ith, nth, thread):
        n, count, size, block = length(step), number(step), size_of(step), block_of(step)
        cut = piece(count, n, nth)
        pieces = (n + cut - 1) // cut
        sd = size if ne_d(step) == block else nb_d(step)  # what lies behind the only block of a row is the next row
        sa = size if ne_a(step) == block else nb_a(step)
        for item in range(count * pieces * ith // nth, count * pieces * (ith + 1) // nth):
            run, begin = item // pieces, item % pieces * cut
            k = min(n, begin + cut) - begin
            to = start_d(step, run * n * block, block) + U(begin * sd)
            source = start_a(step, run * n * block, block) + U(begin * sa)
            move_elements(to, sd, source, sa, k, size)

    return kernel


def _element(name):
    """-> f(step, e, block): address of element number e of an operand, in the order of its dimensions; the first of a
    block."""
    from pyggml.kernels.cpu import record

    n0, n1, n2 = (record.field(f"{name}.ne", i) for i in range(3))
    at = record.element(name)

    @inline
    def address(step, e, block):
        i1 = e // n0(step)
        i2 = i1 // n1(step)
        return at(step, e % n0(step) // block, i1 % n1(step), i2 % n2(step), i2 // n2(step))

    return address
