"""PAD, PAD_REFLECT_1D, ROLL: their rules and builders. Not how they are computed."""

from __future__ import annotations

from collections.abc import Sequence

from pyggml.dtypes import GGMLType
from pyggml.ops.numbers import Op
from pyggml.ops.rules import Shape, Srcs, build, need, rule, sources
from pyggml.tensor import Tensor, pack_params


@rule(Op.PAD)
def _pad(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    (a,) = sources(Op.PAD, src, 1)
    pads, circular = [node.param_i32(i) for i in range(8)], node.param_i32(8)
    need(min(pads) >= 0, Op.PAD, f"negative padding in {pads}", a)
    need(circular in (0, 1), Op.PAD, f"circular is {circular}, must be 0 or 1", a)
    need(not circular or a.nelements > 0, Op.PAD, "circular padding of an empty source", a)
    ne = [n + pads[2 * i] + pads[2 * i + 1] for i, n in enumerate(a.ne)]
    return a.type, (ne[0], ne[1], ne[2], ne[3])


def pad(a: Tensor, before: Sequence[int], behind: Sequence[int], circular: bool = False, name: str = "") -> Tensor:
    """Zeros, or with `circular` what comes when one goes on round the other side: so many elements before and behind
    `a` in each dimension (ggml.c: ggml_pad_ext, ggml_pad_ext_circular)."""
    left, right = (*before, 0, 0, 0, 0)[:4], (*behind, 0, 0, 0, 0)[:4]
    params = [n for pair in zip(left, right, strict=True) for n in pair]
    return build(Op.PAD, (a,), pack_params("9i", *params, int(circular)), name)


@rule(Op.PAD_REFLECT_1D)
def _pad_reflect_1d(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    op = Op.PAD_REFLECT_1D
    (a,) = sources(op, src, 1)
    before, behind = node.param_i32(0), node.param_i32(1)
    need(before >= 0 and behind >= 0, op, f"negative padding: {before}, {behind}", a)
    need(before < a.ne[0] and behind < a.ne[0], op, f"padding of {before} and {behind} must be smaller than the row", a)
    return a.type, (a.ne[0] + before + behind, *a.ne[1:])


def pad_reflect_1d(a: Tensor, before: int, behind: int, name: str = "") -> Tensor:
    """Rows that go on as their mirror image on both sides; the outermost element is not doubled."""
    return build(Op.PAD_REFLECT_1D, (a,), pack_params("ii", before, behind), name)


@rule(Op.ROLL)
def _roll(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    (a,) = sources(Op.ROLL, src, 1)
    shifts = [node.param_i32(i) for i in range(4)]
    fits = all(abs(s) < n for s, n in zip(shifts, a.ne, strict=True))
    need(fits, Op.ROLL, f"shifts {shifts} go round more than once", a)
    return a.type, a.ne


def roll(a: Tensor, *shifts: int, name: str = "") -> Tensor:
    """Every element moved by `shifts`, one for each dimension; what leaves at one end comes in at the other."""
    return build(Op.ROLL, (a,), pack_params("4i", *(*shifts, 0, 0, 0)[:4]), name)
