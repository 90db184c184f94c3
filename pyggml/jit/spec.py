"""Which kernel is meant: a name that can be written down, sent to another process and made into a file's name."""

from __future__ import annotations

import ctypes
import re
from typing import Any, NamedTuple

STEP = "void(u64,i64,i64,i64)"
"""Signature of a plan's kernels: address of the step's record, which part of how many, number of the thread."""
CALL = "void(u64,i64,i64)"
"""Signature of kernels that those call: an address and two numbers."""

CTYPES: dict[str, Any] = {
    "void": None,
    "u64": ctypes.c_uint64,
    "i64": ctypes.c_int64,
    "f32": ctypes.c_float,
    "f64": ctypes.c_double,
}
"""The words of a signature."""


class Spec(NamedTuple):
    """Which kernel: `factory(*args)` of `pyggml.kernels.cpu.<module>` makes it; a module with a dot is a full name."""

    module: str
    factory: str
    args: tuple[str | int, ...] = ()
    signature: str = STEP

    @property
    def label(self) -> str:
        return re.sub(r"[^\w.-]", "~", "-".join([self.module, self.factory, *map(str, self.args)]))  # it names a file

    @property
    def full_module(self) -> str:
        return self.module if "." in self.module else f"pyggml.kernels.cpu.{self.module}"


def parse(signature: str) -> tuple[str, list[str]]:
    """The result's word and the arguments'."""
    result, _, rest = signature.partition("(")
    return result, [a for a in rest.rstrip(")").split(",") if a]
