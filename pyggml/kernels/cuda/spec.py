"""Names of CUDA kernels and of the types of their parameters. Owns what a plan may say of a kernel; must not know a
compiler: plans are made without one where all kernels are in the cache.

A kernel is a plain function made by a factory of `pyggml.kernels.cuda.<module>`. Its parameters are the fields of the class
that it is launched with (launch_args.py) and have one of the types below; addresses are i64, as all arithmetic of Python
integers is.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, TypeAlias

KINDS = ("i64", "i32", "f32")
EARLY = (9, 0)
"""GPUs of this compute capability and later ones may begin a kernel before the one ahead of it has ended: each begins with the
wait for that (PTX ISA: griddepcontrol)."""


class Spec(NamedTuple):
    """Which kernel: `factory(*args)` of `pyggml.kernels.cuda.<module>` makes it."""

    module: str
    factory: str
    args: tuple[str | int, ...] = ()

    @property
    def label(self) -> str:
        """A name for files and messages."""
        return re.sub(r"[^\w.-]", "~", "-".join([self.module, self.factory, *map(str, self.args)]))


def full_name(module: str) -> str:
    """Of a spec's module: one with a dot is none of ours."""
    return module if "." in module else f"pyggml.kernels.cuda.{module}"


def make(spec: Spec) -> Callable[..., Any]:
    """The kernel as a plain function; importing what it is made of imports the compiler."""
    function: Callable[..., Any] = getattr(importlib.import_module(full_name(spec.module)), spec.factory)(*spec.args)
    return function


def kind_of(hint: Any) -> str:
    """The word of KINDS that a type means."""
    kind: str = hint.__metadata__[0]
    assert kind in KINDS, hint
    return kind


@dataclass(eq=False)
class Scratch:
    """Work memory of `size` bytes that lives from the first launch that names it to the last."""

    size: int
    first: int = -1
    last: int = -1
    offset: int = 0

    def at(self, offset: int = 0) -> DeviceAddress:
        """An address in it, as a launch's argument."""
        return DeviceAddress(self, offset)


class DeviceAddress(NamedTuple):
    """An address that is known when the plan is complete."""

    scratch: Scratch
    offset: int


i64: TypeAlias = Annotated[int | DeviceAddress, "i64"]
i32: TypeAlias = Annotated[int, "i32"]
f32: TypeAlias = Annotated[float, "f32"]
