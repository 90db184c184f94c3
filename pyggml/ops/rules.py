"""What makes a node well-formed: the table of shape rules, and the words that rules and builders are written in.

A node that is built here and one that comes from a peer (`check`) are held to the same rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

from pyggml.dtypes import SIZES, GGMLType
from pyggml.errors import ShapeError, UnsupportedError
from pyggml.ops.numbers import VIEW_OPS, Op
from pyggml.ops.overlap import IN_PLACE, check_overlap
from pyggml.tensor import NO_PARAMS, Tensor, contiguous_strides, made_by

Shape = tuple[int, int, int, int]
Srcs = Sequence[Tensor | None]
Rule = Callable[[Srcs, Tensor], tuple[GGMLType, Shape]]

MAX_EMPTY = 2**31
"""A tensor of no elements takes no memory whatever its dimensions, which are loops and tables all the same: those that are
not 0 multiply to no more than this."""

RULES: dict[Op, Rule] = {}
"""For each op that is known here: (sources, node for its op_params) -> type and ne of the result, or ShapeError."""


MAX_FORMS = 4096

Form = tuple[object, ...]


def form_of(node: Tensor) -> Form:
    """All that rules, and devices when they are asked, look at: op, parameters, types, shapes and strides; no address."""
    shapes = [None if s is None else (s.type, s.ne, s.nb) for s in node.src]
    return (node.op, node.op_params, node.type, node.ne, node.nb, *shapes)


class Forms(set[Form]):
    """Forms to which the answer was yes; emptied when there are too many, so that no peer's graphs make it grow."""

    def add(self, form: Form) -> None:
        if len(self) >= MAX_FORMS:
            self.clear()
        super().add(form)


_well_formed = Forms()


def check(node: Tensor) -> None:
    """Hold a node against its op's rule, and where it is placed its address against its sources'. Raises
    UnsupportedError (no such op here) or ShapeError (names the op)."""
    if node.op in VIEW_OPS:
        return
    form = form_of(node)
    if form not in _well_formed:
        _check_form(node)
        _well_formed.add(form)
    check_overlap(node)


def _check_form(node: Tensor) -> None:
    rule = RULES.get(node.op)  # type: ignore[call-overload]  # an Op's hash is its number's
    if rule is None:
        name = Op(node.op).name if 0 <= node.op < len(Op) else f"number {node.op}"
        raise UnsupportedError(f"op {name} is not implemented (node {node.name!r})")
    for tensor in (node, *node.src):
        if tensor is not None and 0 in tensor.ne and prod(n for n in tensor.ne if n) > MAX_EMPTY:
            raise ShapeError(
                f"{Op(node.op).name} {node.name!r}: {tensor.name!r} is empty, but for that {list(tensor.ne)} is too large:"
                f" the other dimensions make more than {MAX_EMPTY}"
            )
    dtype, ne = rule(node.src, node)
    if node.type != dtype or node.ne != ne:
        raise ShapeError(
            f"{Op(node.op).name} {node.name!r}: result is {node.type.name} {list(node.ne)}, must be {dtype.name} {list(ne)}"
        )


def need(ok: bool, op: Op, why: str, *tensors: Tensor | None) -> None:
    """Raises ShapeError with `why` and the shapes of these tensors unless `ok`."""
    if not ok:
        shapes = ", ".join(f"{t.type.name} {list(t.ne)}" for t in tensors if t is not None)
        raise ShapeError(f"{op.name}: {why}" + (f" ({shapes})" if shapes else ""))


def sources(op: Op, src: Srcs, required: int, optional: int = 0) -> tuple[Tensor, ...]:
    """The required sources; any beyond required + optional must be absent."""
    if len(src) == required and None not in src:
        return tuple(src)  # type: ignore[arg-type]
    have = tuple([s for s in src[:required] if s is not None])
    if len(have) != required:
        need(False, op, f"{len(have)} of {required} sources given")
    for s in src[required + optional :]:
        need(s is None, op, f"more than {required + optional} sources given")
    return have


def option(src: Srcs, index: int) -> Tensor | None:
    """Source number `index`, None where there is none."""
    return src[index] if index < len(src) else None


def can_repeat(a: Tensor, b: Tensor) -> bool:
    """Whether `a` tiles `b` in every dimension (ggml.c: ggml_can_repeat)."""
    if a.ne == b.ne:
        return True
    if 0 in a.ne:
        return 0 in b.ne
    return all(nb % na == 0 for na, nb in zip(a.ne, b.ne, strict=True))


def build(op: Op, src: Srcs, params: bytes = NO_PARAMS, name: str = "", view_of: Tensor | None = None) -> Tensor:
    """Build a node whose type and shape its rule gives; `view_of` makes it a view of that source's bytes."""
    node = made_by(op, params, tuple(src), name)
    node.type, node.ne = RULES[op](src, node)
    if view_of is None:
        node.nb = contiguous_strides(node.type, node.ne)
    else:
        node.nb = view_of.nb
        node.view_src, node.view_offs = view_of.view_src or view_of, view_of.view_offs
    return node


def rule(op: Op, *in_place: int) -> Callable[[Rule], Rule]:
    """The op's rule; its result may lie on each of the sources with these numbers, and on no other."""

    def register(function: Rule) -> Rule:
        RULES[op] = function
        IN_PLACE[op] = in_place
        return function

    return register


def dense_rows(a: Tensor) -> bool:
    """ggml.c: ggml_is_contiguous_rows."""
    size = SIZES[a.type]
    return a.ne[0] == size.block_size or a.nb[0] == size.type_size


def divides(a: int, b: int) -> bool:
    """Whether b is a multiple of a, which must be above 0."""
    return a > 0 and b % a == 0
