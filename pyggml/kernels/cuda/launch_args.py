"""Named arguments of launches: beside each kernel stands a NamedTuple, which its lowering makes one of; the kernel's parameters
are its fields in order, so that none is meant by its place.

Owns the groups of numbers that most kernels ask for, and the way from names to words. Importing this module does not
import Numba.
"""

from __future__ import annotations

import functools
import typing
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from pyggml.kernels.cuda.spec import DeviceAddress, f32, i32, i64, kind_of

if TYPE_CHECKING:
    from pyggml.tensor import Tensor

Word: TypeAlias = "int | float | DeviceAddress"
LaunchArgs: TypeAlias = "tuple[Any, ...]"
"""An instance of a kernel's class: words, and groups of them."""


class Place(NamedTuple):
    """Where a tensor lies: its address, bytes from element to element in each dimension. As parameters x, x0 ... x3."""

    at: i64
    nb0: i64
    nb1: i64
    nb2: i64
    nb3: i64


class Rows(NamedTuple):
    """The same of a tensor whose rows are dense. As parameters x, x1, x2, x3."""

    at: i64
    nb1: i64
    nb2: i64
    nb3: i64


class Extents(NamedTuple):
    """How many elements a tensor has in each dimension but the last. As parameters n0, n1, n2."""

    ne0: i32
    ne1: i32
    ne2: i32


class AllExtents(NamedTuple):
    ne0: i32
    ne1: i32
    ne2: i32
    ne3: i32


SUFFIXES: dict[type, tuple[str, ...]] = {
    Place: ("", "0", "1", "2", "3"),
    Rows: ("", "1", "2", "3"),
    Extents: ("0", "1", "2"),
    AllExtents: ("0", "1", "2", "3"),
}
"""What is put behind a field's name. The fields of other groups are parameters under their own names."""

NOWHERE = Place(0, 0, 0, 0, 0)


def place(t: Tensor | None) -> Place:
    """Of a tensor that is absent all is 0."""
    return NOWHERE if t is None else Place(t.data, *t.nb)


def rows(t: Tensor) -> Rows:
    return Rows(t.data, *t.nb[1:])


def extents(ne: Sequence[int]) -> Extents:
    return Extents(ne[0], ne[1], ne[2])


def _hints(of: type) -> dict[str, Any]:
    return typing.get_type_hints(of, include_extras=True)


def _is_group(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, tuple)


@functools.cache
def fields(of: type) -> tuple[tuple[str, str], ...]:
    """Name and kind (a word of spec.KINDS) of each parameter of a kernel that is launched with this class."""
    found: list[tuple[str, str]] = []
    for name, hint in _hints(of).items():
        if not _is_group(hint):
            found.append((name, kind_of(hint)))
        elif hint in SUFFIXES:
            inner = [kind for _, kind in fields(hint)]
            found += zip([name + suffix for suffix in SUFFIXES[hint]], inner, strict=True)
        else:
            found += fields(hint)
    return tuple(found)


@functools.cache
def _groups(of: type) -> frozenset[int]:
    return frozenset(i for i, hint in enumerate(_hints(of).values()) if _is_group(hint))


def words(args: LaunchArgs) -> tuple[Word, ...]:
    """The words of a launch, in the order of the kernel's parameters."""
    groups = _groups(type(args))
    if not groups:
        return args
    found: list[Word] = []
    for i, arg in enumerate(args):
        if i in groups:
            found += words(arg)
        else:
            found.append(arg)
    return tuple(found)


class Words(NamedTuple):
    """Numbers of a launch's words: those of each kind that is not just a number, and those that say of which node they are."""

    floats: tuple[int, ...]
    longs: tuple[int, ...]
    node_numbers: tuple[int, ...]


NODE_NUMBER = "number"
"""A parameter of this name is 1 + the number of a node, or 0."""


@functools.cache
def words_of(of: type) -> Words:
    """Of a kernel that is launched with this class."""
    found = list(enumerate(fields(of)))
    return Words(
        tuple(i for i, (_, kind) in found if kind == "f32"),
        tuple(i for i, (_, kind) in found if kind == "i64"),
        tuple(i for i, (name, _) in found if name == NODE_NUMBER),
    )


def entry(args: type, threads: int = 1024, blocks: int = 1) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a function a kernel that is launched with `args` and at most so many threads a block, so many blocks of which a
    multiprocessor is to hold at once: both bound its registers."""
    expected = tuple(name for name, _ in fields(args))

    def mark(function: Any) -> Callable[..., None]:
        code = function.__code__
        names = code.co_varnames[: code.co_argcount]
        assert names == expected, f"{function.__qualname__} has the parameters {names}, {args.__name__} {expected}"
        function.args, function.threads, function.blocks = args, threads, blocks
        return function

    return mark


__all__ = [
    "NOWHERE", "AllExtents", "Extents", "LaunchArgs", "Place", "Rows", "Word", "Words", "entry", "extents", "f32", "fields", "i32", "i64",
    "place", "rows", "words", "words_of",
]  # fmt: skip
