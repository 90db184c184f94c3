"""Named arguments of kernels: what a lowering adds to a step beside its operands.

Owns the way from names to the words of a step's `ints` (steps.STEP) and back. Beside each kernel that takes arguments stands
a NamedTuple of ints and floats; the lowering makes one, the kernel gets loads from `readers` of the same class, and
so no place is written down twice. Importing this module does not import Numba.
"""

from __future__ import annotations

import struct
import typing
from typing import TypeAlias, TypeVar

StepArgs: TypeAlias = "tuple[int | float, ...]"
"""An instance of some kernel's class; () = its kernel takes none."""

MAX_ARGS = 8

A = TypeVar("A", bound=StepArgs)


def packed(args: StepArgs) -> tuple[int, ...]:
    """The words of `ints`: what the class says is a float as the bits of its f64."""
    of = type(args)
    floats = _FLOATS.get(of)
    if floats is None:
        kinds = typing.get_type_hints(of).values() if args else ()
        floats = _FLOATS[of] = tuple([i for i, kind in enumerate(kinds) if kind is float])
    if not floats:
        return tuple(args)  # type: ignore[arg-type]  # of ints alone
    return tuple([_bits(x) if i in floats else int(x) for i, x in enumerate(args)])


_FLOATS: dict[type[StepArgs], tuple[int, ...]] = {}
"""Which arguments of a class are floats."""


def _bits(x: float) -> int:
    found: int = struct.unpack("<q", struct.pack("<d", x))[0]
    return found


def readers(of: type[A]) -> A:
    """For each argument f(step), which loads it: i64, or f64 where the class says float. Called by factories (Numba)."""
    from pyggml import simd as v
    from pyggml.steps import offset

    kinds = typing.get_type_hints(of)
    assert len(kinds) <= MAX_ARGS, of
    return of(
        *[v.reader(offset("ints") + 8 * i, "f64" if kinds[name] is float else "i64") for i, name in enumerate(kinds)]
    )
