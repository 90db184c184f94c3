"""POOL_1D, POOL_2D: their rules and builders. Not how they are computed."""

from __future__ import annotations

from enum import IntEnum

from pyggml.dtypes import GGMLType
from pyggml.ops.numbers import Op
from pyggml.ops.rules import Shape, Srcs, build, need, rule, sources
from pyggml.tensor import Tensor, pack_params


class PoolOp(IntEnum):
    """What a window becomes, in op_params[0]: `enum ggml_op_pool` of ggml.h."""

    MAX = 0
    AVG = 1


@rule(Op.POOL_1D)
def _pool_1d(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    (a,) = sources(Op.POOL_1D, src, 1)
    _need_type(Op.POOL_1D, a, node)
    k, s, p = (node.param_i32(i) for i in (1, 2, 3))
    return GGMLType.F32, (_windows(Op.POOL_1D, a, 0, k, s, p), *a.ne[1:])


@rule(Op.POOL_2D)
def _pool_2d(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    op = Op.POOL_2D
    (a,) = sources(op, src, 1)
    _need_type(op, a, node)
    k0, k1, s0, s1, p0, p1 = (node.param_i32(i) for i in range(1, 7))
    n0, n1 = _windows(op, a, 0, k0, s0, p0), _windows(op, a, 1, k1, s1, p1)
    need(k0 * k1 < 2**31, op, f"a window of {k0} x {k1} elements: must be fewer than 2^31", a)
    return GGMLType.F32, (n0, n1, *a.ne[2:])


def _need_type(op: Op, a: Tensor, node: Tensor) -> None:
    need(a.type in (GGMLType.F32, GGMLType.F16), op, "the source is neither F32 nor F16", a)
    need(node.param_i32(0) in tuple(PoolOp), op, f"no such way to pool: {node.param_i32(0)}, must be 0 or 1", a)


def _windows(op: Op, a: Tensor, dim: int, k: int, s: int, p: int) -> int:
    """How many windows of k elements, s apart, fit into a dimension with p more on each side (ggml.c:
    ggml_calc_pool_output_size)."""
    need(k > 0 and s > 0 and p >= 0, op, f"windows of {k} elements, {s} apart, padding {p}", a)
    room = a.ne[dim] + 2 * p - k
    need(room >= 0, op, f"a window of {k} does not fit into dimension {dim} with padding {p}", a)
    return room // s + 1


def pool_1d(a: Tensor, kind: PoolOp, k: int, s: int, p: int = 0, name: str = "") -> Tensor:
    """F32 or F16 (n, ...) -> F32 ((n + 2p - k) // s + 1, ...): windows of k elements of each row, s apart, the first p before the
    row's start. What lies outside of the row counts for nothing: an average is that of the elements inside, of none 0."""
    return build(Op.POOL_1D, (a,), pack_params("4i", kind, k, s, p), name)


def pool_2d(
    a: Tensor,
    kind: PoolOp,
    k: tuple[int, int],
    s: tuple[int, int],
    p: tuple[int, int] = (0, 0),
    name: str = "",
) -> Tensor:
    """The same in dimensions 0 and 1: windows of k[0] x k[1] elements. An average is the sum of what lies inside by
    k[0] * k[1]. The maximum begins at the lowest finite F32; what came before a NaN is forgotten, as in ggml."""
    return build(Op.POOL_2D, (a,), pack_params("7i", kind, *k, *s, *p), name)
