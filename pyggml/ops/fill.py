"""FILL, ARANGE, TRI, DIAG: their rules and builders. Not how they are computed."""

from __future__ import annotations

import math
from enum import IntEnum

import numpy as np

from pyggml.dtypes import GGMLType
from pyggml.ops.numbers import Op
from pyggml.ops.rules import Shape, Srcs, build, need, rule, sources
from pyggml.tensor import Tensor, pack_params


class TriType(IntEnum):
    """Which elements TRI keeps, in op_params[0] (ggml.h: enum ggml_tri_type)."""

    UPPER_DIAG = 0
    UPPER = 1
    LOWER_DIAG = 2
    LOWER = 3


@rule(Op.FILL, 0)
def _fill(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    (a,) = sources(Op.FILL, src, 1)
    return a.type, a.ne


def fill(a: Tensor, value: float, inplace: bool = False, name: str = "") -> Tensor:
    """The shape and type of `a`, full of one number. `inplace`: the result is a view of a."""
    return build(Op.FILL, (a,), pack_params("f", value), name, a if inplace else None)


@rule(Op.ARANGE)
def _arange(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    sources(Op.ARANGE, src, 0)
    start, stop, step = (np.float32(node.param_f32(i)) for i in range(3))
    with np.errstate(all="ignore"):
        count = float((stop - start) / step)
    need(math.isfinite(count) and 0 < count < 2**31, Op.ARANGE, f"{start} to {stop} in steps of {step}")
    return GGMLType.F32, (math.ceil(count), 1, 1, 1)


def arange(start: float, stop: float, step: float, name: str = "") -> Tensor:
    """start, start + step ... below stop, in F32."""
    return build(Op.ARANGE, (), pack_params("3f", start, stop, step), name)


@rule(Op.TRI)
def _tri(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    (a,) = sources(Op.TRI, src, 1)
    need(a.ne[0] == a.ne[1], Op.TRI, "the matrices are not square", a)
    need(0 <= node.param_i32(0) < len(TriType), Op.TRI, f"unknown kind of triangle {node.param_i32(0)}", a)
    return a.type, a.ne


def tri(a: Tensor, kind: TriType, name: str = "") -> Tensor:
    """One triangle of square matrices, zeros elsewhere."""
    return build(Op.TRI, (a,), pack_params("i", kind), name)


@rule(Op.DIAG)
def _diag(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    (a,) = sources(Op.DIAG, src, 1)
    need(a.ne[1] == 1, Op.DIAG, "the source has more than one row", a)
    return a.type, (a.ne[0], a.ne[0], a.ne[2], a.ne[3])


def diag(a: Tensor, name: str = "") -> Tensor:
    """Square matrices with a's rows on their diagonals, zeros elsewhere."""
    return build(Op.DIAG, (a,), name=name)
