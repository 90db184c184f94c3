"""What the CPU's kernels can do with each type: a row a type. The files beside this one have the vector code, a family each.

Whatever depends on a type asks the table: which ops take it (the collections at the end), and how kernels know its blocks.
Importing this does not import Numba; `functions` does, and is for factories.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

from pyggml import jit
from pyggml.dtypes import GGMLType
from pyggml.kernels.cpu.formats.forms import Functions

WRITE_ROOM = 9920
"""Bytes of work memory in which a thread makes a block, unless it is made of two vectors."""


class Form(Enum):
    FLOATS = "elements alone: convert.py loads and stores them"
    BLOCKS_32 = "32 values that share a scale (forms.VectorBlocks)"
    SUPER_BLOCKS = "256 values whose runs have scales (forms.SuperBlocks)"
    WHOLE = "whole blocks become F32, and kernels for F32 do the rest (dequant_fallback.py)"


@dataclass(frozen=True)
class Format:
    """A row of the table.

    module: the file in this folder that has the type's functions; with a dot it is a full name.
    multiplies: weights of this type can be multiplied. writes: values can be quantised to it. They can always be read.
    runs_of_16: the scale changes every 16 values. signed: q are i8, which takes more registers where there is no VNNI.
    """

    type: GGMLType
    form: Form
    module: str
    multiplies: bool = True
    writes: bool = True
    runs_of_16: bool = False
    signed: bool = False

    @property
    def full_module(self) -> str:
        return self.module if "." in self.module else f"{__name__}.{self.module}"

    @cached_property
    def room(self) -> int:
        """Bytes of work memory that a thread needs to write blocks."""
        return WRITE_ROOM if self.writes and self.form in (Form.SUPER_BLOCKS, Form.WHOLE) else 0

    @cached_property
    def as_floats(self) -> bool:
        """Whether weights meet F32 activations as they are, not rounded to 8 bits."""
        return self.form in (Form.FLOATS, Form.WHOLE)


T = GGMLType

FORMATS: dict[GGMLType, Format] = {
    row.type: row
    for row in (
        Format(T.F32, Form.FLOATS, "floats"),
        Format(T.F16, Form.FLOATS, "floats"),
        Format(T.BF16, Form.FLOATS, "floats"),
        Format(T.Q4_0, Form.BLOCKS_32, "blocks_32"),
        Format(T.Q4_1, Form.BLOCKS_32, "blocks_32"),
        Format(T.Q5_0, Form.BLOCKS_32, "blocks_32"),
        Format(T.Q5_1, Form.BLOCKS_32, "blocks_32"),
        Format(T.Q8_0, Form.BLOCKS_32, "blocks_32", signed=True),
        Format(T.Q8_1, Form.BLOCKS_32, "blocks_32", multiplies=False),
        Format(T.IQ4_NL, Form.BLOCKS_32, "blocks_32", signed=True),
        Format(T.MXFP4, Form.BLOCKS_32, "blocks_32", signed=True),
        Format(T.Q2_K, Form.SUPER_BLOCKS, "k_quants", runs_of_16=True),
        Format(T.Q3_K, Form.SUPER_BLOCKS, "k_quants", runs_of_16=True),
        Format(T.Q4_K, Form.SUPER_BLOCKS, "k_quants"),
        Format(T.Q5_K, Form.SUPER_BLOCKS, "k_quants"),
        Format(T.Q6_K, Form.SUPER_BLOCKS, "k_quants", runs_of_16=True),
        Format(T.IQ4_XS, Form.SUPER_BLOCKS, "k_quants", signed=True),
        Format(T.Q1_0, Form.WHOLE, "few_bits"),
        Format(T.Q2_0, Form.WHOLE, "few_bits"),
        Format(T.TQ1_0, Form.SUPER_BLOCKS, "ternary"),
        Format(T.TQ2_0, Form.SUPER_BLOCKS, "ternary"),
        Format(T.NVFP4, Form.WHOLE, "nvfp4"),
        Format(T.IQ1_S, Form.SUPER_BLOCKS, "codebook", writes=False),
        Format(T.IQ1_M, Form.SUPER_BLOCKS, "codebook", writes=False, runs_of_16=True),
        Format(T.IQ2_XXS, Form.SUPER_BLOCKS, "codebook", writes=False),
        Format(T.IQ2_XS, Form.SUPER_BLOCKS, "codebook", writes=False, runs_of_16=True),
        Format(T.IQ2_S, Form.SUPER_BLOCKS, "codebook", writes=False, runs_of_16=True),
        Format(T.IQ3_XXS, Form.SUPER_BLOCKS, "codebook", writes=False),
        Format(T.IQ3_S, Form.SUPER_BLOCKS, "codebook", writes=False),
    )
}


def add(row: Format, *modules: str) -> None:
    """Let kernels compute with a type of another package. `modules`: all of its modules that kernels are made of or that add
    something when they are imported, in the order in which a process that compiles shall import them."""
    assert row.type not in FORMATS, row
    FORMATS[row.type] = row
    for types in _COLLECTIONS:
        types.fill()
    jit.made_with(row.type.name, *modules, row.full_module)


def functions(dtype: GGMLType) -> Functions:
    """The type's vector code; for factories (Numba)."""
    found: Functions = importlib.import_module(FORMATS[dtype].full_module).FUNCTIONS[dtype.name]
    return found


def work_bytes(dtype: GGMLType) -> int:
    """Work memory that a thread needs to quantise to this type."""
    return FORMATS[dtype].room


_COLLECTIONS: list[TypesThat] = []


class TypesThat(dict[GGMLType, None]):
    """Types whose row passes a test, in the order of the table; those that are added later too."""

    def __init__(self, test: Callable[[Format], bool]) -> None:
        self._test = test
        self.fill()
        _COLLECTIONS.append(self)

    def fill(self) -> None:
        """Hold what the table has now."""
        self.clear()
        self.update(dict.fromkeys(row.type for row in FORMATS.values() if self._test(row)))


DEQUANTIZABLE = TypesThat(lambda row: True)
"""Those whose values can be read."""
QUANTIZABLE = TypesThat(lambda row: row.writes)
"""Those that values are quantised to."""
CONVERTIBLE = TypesThat(lambda row: row.writes and row.form is not Form.WHOLE)
"""Those that convert.py both reads and writes."""
MULTIPLIED = TypesThat(lambda row: row.multiplies)
"""Those of weights."""
DEQUANTISED_FIRST = TypesThat(lambda row: row.form is Form.WHOLE)
"""Those that dequant_fallback.py takes care of."""
