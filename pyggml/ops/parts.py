"""SET, ACC: their rules and builders. Not how they are computed."""

from __future__ import annotations

from pyggml.dtypes import SIZES, GGMLType
from pyggml.ops.numbers import Op
from pyggml.ops.rules import Rule, Shape, Srcs, build, need, rule, sources
from pyggml.tensor import Tensor, pack_params


def part_strides(node: Tensor) -> tuple[Shape, int]:
    """nb of the part of a SET or ACC, its offset in bytes."""
    return (SIZES[node.type].type_size, *(node.param_i32(i) for i in range(3))), node.param_i32(3)  # type: ignore[return-value]


def _part_rule(op: Op) -> Rule:
    def part(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
        a, b = sources(op, src, 2)
        need(a.is_contiguous, op, "the whole is not contiguous", a)
        need(a.type == b.type and SIZES[a.type].block_size == 1, op, "types differ, or have blocks", a, b)
        if node.nelements:
            need(node.is_contiguous, op, "the result is not contiguous", node)
        strides = [node.param_i32(i) for i in range(4)]
        need(min(strides) >= 0, op, f"negative strides or offset: {strides}", a, b)
        if b.nelements:
            end = strides[3] + b.ne[0] * SIZES[a.type].type_size
            end += sum((n - 1) * nb for n, nb in zip(b.ne[1:], strides, strict=False))
            need(end <= a.nbytes, op, f"the part ends at byte {end} of {a.nbytes}", a, b)
        return a.type, a.ne

    return part


for _op in (Op.SET, Op.ACC):
    rule(_op, 0)(_part_rule(_op))


def _build(op: Op, a: Tensor, b: Tensor, strides: Shape, offset: int, inplace: bool, name: str) -> Tensor:
    params = pack_params("5i", *strides[1:], offset, int(inplace))
    return build(op, (a, b), params, name, a if inplace else None)


def set_part(a: Tensor, b: Tensor, strides: Shape, offset: int, inplace: bool = False, name: str = "") -> Tensor:
    """a, but for the part that starts `offset` bytes in and has b's shape and `strides` (nb): there it is b (ggml.c:
    ggml_set; of `strides` the first is that of a). `inplace`: the result is a view of a."""
    return _build(Op.SET, a, b, strides, offset, inplace, name)


def acc(a: Tensor, b: Tensor, strides: Shape, offset: int, inplace: bool = False, name: str = "") -> Tensor:
    """As `set_part`, but b is added there."""
    return _build(Op.ACC, a, b, strides, offset, inplace, name)
