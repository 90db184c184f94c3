"""MUL_MAT, MUL_MAT_ID, OUT_PROD: chooses how a product is computed and shares what is made of activations between them.

Owns the choice; the kernels are in matvec.py (few columns), tile.py (many), activations.py and experts.py. It depends on
shapes and the CPU level alone, never on the number of threads. Operands that no kernel reads as they lie, such as
transposed ones or activations of another type than F32, are copied into work memory first.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from pyggml import jit
from pyggml.dtypes import SIZES, GGMLType
from pyggml.jit import Spec
from pyggml.kernels.cpu import activations, copy, dequant_fallback, experts, fill, matvec, tile
from pyggml.kernels.cpu.formats import DEQUANTISED_FIRST, DEQUANTIZABLE, FORMATS, MULTIPLIED
from pyggml.kernels.cpu.layout import FLOATS, refuse_types
from pyggml.kernels.cpu.product_args import ProductArgs
from pyggml.ops import Op, is_one_by_one

if TYPE_CHECKING:
    from pyggml.kernels.cpu.step_args import StepArgs
    from pyggml.lowering.cpu import Builder, Scratch, WorkTensor
    from pyggml.tensor import Tensor

T = GGMLType
MIN_TILE_COLUMNS = {"vnni": 3, "v4": 2, "v3": 3}
"""Columns of weights in blocks that are met in tiles at least; 4 elsewhere, and of weights in floats
(benchmarks/kernels.py -c)."""
WIDTH = {"vnni": (12, 12, 12), "v4": (12, 10, 10), "v3": (4, 3, 2), "v2": (1, 1, 1), "generic": (4, 4, 4)}
"""Tokens in a register tile, whose accumulators should stay in registers: of floats, of integers (which have a second
set), and of integers that are signed or whose scales change every 16 values (benchmarks/kernels.py)."""

PLANES = Spec("activations", "planes")

Listed: TypeAlias = "tuple[WorkTensor, tuple[int, int]] | None"
"""A table of experts.py and where its parts begin."""


def why_not(node: Tensor) -> str | None:
    a, b = node.src[:2]
    assert a is not None and b is not None
    if node.op == Op.OUT_PROD:
        return refuse_types(DEQUANTIZABLE, a, b) or _result(node)
    reason = refuse_types(MULTIPLIED, a) or refuse_types(DEQUANTIZABLE, b)
    if reason:
        return f"{Op(node.op).name}: {reason}"
    return _result(node)


def _result(node: Tensor) -> str | None:
    if node.nb[0] != 4:
        return f"{Op(node.op).name}: rows of the result are not contiguous"
    return None


def lower(builder: Builder, node: Tensor) -> None:
    a, b = node.src[:2]
    assert a is not None and b is not None
    if node.op == Op.OUT_PROD:
        _product(builder, node, _transposed(builder, a), _transposed(builder, b))
        return
    if not _dense(a):
        a = _copied(builder, a, a.type)
    b = _f32(builder, b)
    if node.op == Op.MUL_MAT:
        _product(builder, node, a, b)
    else:
        _by_expert(builder, node, a, b)


def _dense(t: Tensor) -> bool:
    return t.nb[0] == SIZES[t.type].type_size or t.ne[0] == 1


def _copied(builder: Builder, t: Tensor, dtype: GGMLType) -> Tensor:
    """A dense copy in work memory, once for all products that need it."""
    key = ("copied", dtype, t.data, t.type, t.ne, t.nb)
    found: Tensor | None = builder.remembered(key)
    if found is None:
        found = builder.work_tensor(dtype, t.ne)
        if found.nelements:
            copy.put(builder, found, t)
        builder.remember(key, found, t)
    return found


def _f32(builder: Builder, t: Tensor) -> Tensor:
    """F32 in dense rows."""
    return t if t.type == T.F32 and _dense(t) else _copied(builder, t, T.F32)


def _transposed(builder: Builder, t: Tensor) -> Tensor:
    """F32 with dimensions 0 and 1 swapped, in dense rows."""
    if t.type not in FLOATS:
        t = _f32(builder, t)
    (n0, n1, n2, n3), (b0, b1, b2, b3) = t.ne, t.nb
    turned = t.reshaped((n1, n0, n2, n3), (b1, b0, b2, b3))
    return _f32(builder, turned)


@functools.cache
def tile_width(dtype: GGMLType) -> int:
    """Tokens in a register tile that meets weights of this type."""
    floats, integers, halves = WIDTH[jit.level()]
    row = FORMATS[dtype]
    return floats if row.as_floats else halves if row.runs_of_16 or row.signed else integers


@functools.cache
def min_tile_columns(dtype: GGMLType) -> int:
    return 4 if FORMATS[dtype].as_floats else MIN_TILE_COLUMNS.get(jit.level(), 4)


def _product(builder: Builder, node: Tensor, a: Tensor, b: Tensor) -> None:
    if b.ne[1] >= min_tile_columns(a.type) and not is_one_by_one(node):
        each = -(-b.ne[1] // tile_width(a.type))
        _gemm(builder, node, a, b, each, each * b.ne[2] * b.ne[3])
    else:
        _matvec(builder, node, a, b)


def _by_expert(builder: Builder, node: Tensor, a: Tensor, b: Tensor) -> None:
    """Tiles where an expert has enough tokens on average, else row by row, reading the experts that have any."""
    ids = node.src[2]
    assert ids is not None
    if not a.ne[0]:
        fill.zeros(builder, node)  # and no table of experts, whose number no memory bounds then
        return
    n_experts = a.ne[2]
    if ids.ne[0] * ids.ne[1] >= min_tile_columns(a.type) * n_experts and not is_one_by_one(node):
        width = tile_width(a.type)
        table = experts.table(builder, ids, n_experts, width)
        _gemm(builder, node, a, b, 0, experts.most_panels(ids, n_experts, width), table)
    else:
        _matvec(builder, node, a, b, experts.table(builder, ids, n_experts, ids.ne[0] * ids.ne[1]))


def _converted(
    builder: Builder, b: Tensor, spec: Spec, size: int, args: StepArgs, table: WorkTensor | None = None
) -> Scratch:
    """The activations in the layout that `spec` makes, once for all products that read them."""
    key = (spec, b.data, b.ne, b.nb, table and table.data)
    found: Scratch | None = builder.remembered(key)
    if found is None:
        found = builder.scratch(size)
        builder.step(spec, None, (b, table), args=args, writes=(found,))
        builder.remember(key, found, b)
    return found


@functools.cache
def _kernel(dtype: GGMLType, module: str, *args: int) -> tuple[Spec, tuple[Spec, ...]]:
    """(kernel, what it calls) for weights of this type."""
    if dtype not in DEQUANTISED_FIRST:
        return Spec(module, "rows", (dtype.name, *args)), ()
    return Spec("dequant_fallback", "product"), (dequant_fallback.decoder(dtype), Spec(module, "rows", ("F32", *args)))


def _matvec(builder: Builder, node: Tensor, a: Tensor, b: Tensor, listed: Listed = None) -> None:
    spec, calls = _kernel(a.type, "matvec", *matvec.together(1 if listed else b.ne[1]))
    reads, room = [], 0
    table, (panels_from, pairs_from) = listed or (None, (0, 0))
    length = padded = size = 0
    if not FORMATS[a.type].as_floats:
        length = a.ne[0] // activations.BLOCK
        padded = activations.padded(length)
        size = padded * activations.PLANE_BYTES
        planes = activations.PlaneArgs(length, padded, size)
        reads = [_converted(builder, b, PLANES, b.nrows * size, planes)]
    elif calls:
        room = dequant_fallback.product_bytes(a.ne[0], 0)
    args = ProductArgs(
        length=length, padded=padded, column_bytes=size, panels_from=panels_from, pairs_from=pairs_from,
        row_blocks=a.ne[0] // SIZES[a.type].block_size if calls else 0,
    )  # fmt: skip
    if listed is not None:
        writes = [builder.thread_scratch(experts.RECORD + room)]
        by_row, calls = Spec("experts", "matvec"), (spec, *calls)
        builder.step(by_row, node, (a, b, table), args=args, writes=writes, reads=reads, calls=calls)
        return
    writes = [builder.thread_scratch(room)] if room else []
    builder.step(spec, node, (a, b), args=args, writes=writes, reads=reads, calls=(spec, *calls) if calls else ())


class _Tiles(NamedTuple):
    """How tiles meet rows of one type and length. `convert` makes panels of activations, which have `length` blocks, or elements
    where weights meet floats, and `size` bytes; `room`: work memory of a thread."""

    convert: Spec
    length: int
    size: int
    kernel: Spec
    calls: tuple[Spec, ...]
    room: int
    row_blocks: int


@functools.lru_cache(256)
def _tiles(dtype: GGMLType, k: int) -> _Tiles:
    """For weights with rows of `k` elements."""
    width, row = tile_width(dtype), FORMATS[dtype]
    if row.as_floats:
        length, size = k, k * 4 * width
        convert = Spec("activations", "columns", (width,))
    else:
        length = k // activations.BLOCK
        size = length * activations.PANEL_BYTES * width
        convert = Spec("activations", "panels", (width, 1) if row.runs_of_16 else (width,))
    kernel, calls = _kernel(dtype, "tile", width)
    room = -(-tile.work_bytes(T.F32 if calls else dtype, k) // 64) * 64
    if calls:
        room = dequant_fallback.product_bytes(k, room)
    return _Tiles(convert, length, size, kernel, calls, room, k // SIZES[dtype].block_size if calls else 0)


def _gemm(builder: Builder, node: Tensor, a: Tensor, b: Tensor, each: int, panels: int, listed: Listed = None) -> None:
    """`panels` of activations, `each` for one matrix."""
    convert, length, size, kernel, calls, room, row_blocks = _tiles(a.type, a.ne[0])
    table, parts = listed or (None, (0, 0))
    columns = _converted(builder, b, convert, panels * size, activations.PanelArgs(length, each, *parts), table)
    args = ProductArgs(
        length=length, column_bytes=size, panels_from=parts[0], pairs_from=parts[1], work_bytes=room,
        row_blocks=row_blocks, panels_each=each,
    )  # fmt: skip
    if listed is None:
        work = builder.thread_scratch(room)
        calls = (kernel, *calls) if calls else ()
        builder.step(kernel, node, (a, b), args=args, writes=(work,), reads=(columns,), calls=calls)
        return
    work = builder.thread_scratch(experts.RECORD + room + node.ne[1] * node.ne[2] * 4 * experts.ROWS)
    by_tile = Spec("experts", "gemm")
    builder.step(by_tile, node, (a, b, table), args=args, writes=(work,), reads=(columns,), calls=(kernel, *calls))
