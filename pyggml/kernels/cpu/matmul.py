"""MUL_MAT: chooses how a product is computed and shares the activations' conversion between products.

Owns the choice; the kernels are in matvec.py (few columns), tile.py (many) and activations.py. It depends on shapes
and the CPU level alone, never on the number of threads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyggml import jit
from pyggml.dtypes import SIZES, GGMLType
from pyggml.jit import Spec
from pyggml.kernels.cpu import activations, tile

if TYPE_CHECKING:
    from pyggml.backend.cpu import Builder, Scratch
    from pyggml.tensor import Tensor

T = GGMLType
HALVES = (T.Q2_K, T.Q3_K, T.Q6_K)  # their scales change every 16 values
TYPES = (
    *(T.F32, T.F16, T.BF16, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0),
    *(T.Q2_K, T.Q3_K, T.Q4_K, T.Q5_K, T.Q6_K, T.IQ4_NL, T.IQ4_XS),
)

MIN_TILE_COLUMNS = 4
WIDTH = {"vnni": 12, "v4": 12, "v3": 3, "v2": 1, "generic": 4}
"""Tokens in a register tile: as many accumulators (and twice as many, for integers) as there are registers."""


def why_not(node: Tensor) -> str | None:
    a, b = node.src[:2]
    assert a is not None and b is not None
    if a.type not in TYPES:
        return f"MUL_MAT with weights of {a.type.name}"
    if b.type != T.F32:
        return f"MUL_MAT with activations of {b.type.name}"
    if a.nb[0] != SIZES[a.type].type_size:
        return "MUL_MAT with rows that are not dense"
    if b.nb[0] != 4 and b.ne[0] != 1:
        return "MUL_MAT with activation rows that are not dense"
    if node.nb[0] != 4:
        return "MUL_MAT with a result whose rows are not dense"
    return None


def lower(builder: Builder, node: Tensor) -> None:
    a, b = node.src[:2]
    assert a is not None and b is not None
    if b.ne[1] >= MIN_TILE_COLUMNS:
        _many(builder, node, a, b)
    else:
        _few(builder, node, a, b)


def _converted(builder: Builder, b: Tensor, spec: Spec, size: int, ints: tuple[int, ...]) -> Scratch:
    """The activations in the layout that `spec` makes, once for all products that read them."""
    key = (spec, b.data, b.ne, b.nb)
    found: Scratch | None = builder.remembered(key)
    if found is None:
        found = builder.scratch(size)
        builder.step(spec, None, [b], ints=ints, writes=[found])
        builder.remember(key, found, b)
    return found


def _few(builder: Builder, node: Tensor, a: Tensor, b: Tensor) -> None:
    spec = Spec("matvec", "rows", (a.type.name,))
    if SIZES[a.type].block_size == 1:
        builder.step(spec, node, [a, b])
        return
    nb = a.ne[0] // activations.BLOCK
    pad = activations.padded(nb)
    ints = (nb, pad, pad * activations.PLANE_BYTES)
    planes = _converted(builder, b, Spec("activations", "planes"), b.nrows * ints[2], ints)
    builder.step(spec, node, [a, b], ints=ints, reads=[planes])


def _many(builder: Builder, node: Tensor, a: Tensor, b: Tensor) -> None:
    k = a.ne[0]
    width = WIDTH[jit.level()]
    if b.ne[1] <= 4:
        width = min(width, 4)
    each = -(-b.ne[1] // width)
    if SIZES[a.type].block_size == 1:
        length, size = k, k * 4 * width
        spec = Spec("activations", "columns", (width,))
    else:
        length = k // activations.BLOCK
        size = length * activations.PANEL_BYTES * width
        spec = Spec("activations", "panels", (width, 1) if a.type in HALVES else (width,))
    matrices = b.ne[2] * b.ne[3]
    panels = _converted(builder, b, spec, matrices * each * size, (length, 0, each))
    work = builder.thread_scratch(tile.panel_bytes(a.type, k))
    spec = Spec("tile", "rows", (a.type.name, width))
    builder.step(spec, node, [a, b], ints=(length, each, size), writes=[work], reads=[panels])
