"""Every ggml type: its id, elements per block and bytes per block.

Owns the sizes alone, also of types that nothing here computes (a file or a peer may name them); what the bytes of a
block mean is in `quants/`. Numbers follow `enum ggml_type` (ggml.h) and the blocks of ggml-common.h.
"""

import re
from enum import IntEnum
from typing import NamedTuple

from pyggml.errors import ShapeError


class GGMLType(IntEnum):
    """Types of elements and blocks, by their numbers in files and on the wire (ggml.h: ggml_type)."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q8_1 = 9
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    Q8_K = 15
    IQ2_XXS = 16
    IQ2_XS = 17
    IQ3_XXS = 18
    IQ1_S = 19
    IQ4_NL = 20
    IQ3_S = 21
    IQ2_S = 22
    IQ4_XS = 23
    I8 = 24
    I16 = 25
    I32 = 26
    I64 = 27
    F64 = 28
    IQ1_M = 29
    BF16 = 30
    TQ1_0 = 34
    TQ2_0 = 35
    MXFP4 = 39
    NVFP4 = 40
    Q1_0 = 41
    Q2_0 = 42


class TypeSize(NamedTuple):
    """What a block of a type takes."""

    block_size: int  # elements a block
    type_size: int  # bytes a block


T = GGMLType
SIZES: dict[GGMLType, TypeSize] = {
    T.F32: TypeSize(1, 4),
    T.F16: TypeSize(1, 2),
    T.BF16: TypeSize(1, 2),
    T.F64: TypeSize(1, 8),
    T.I8: TypeSize(1, 1),
    T.I16: TypeSize(1, 2),
    T.I32: TypeSize(1, 4),
    T.I64: TypeSize(1, 8),
    T.Q4_0: TypeSize(32, 18),
    T.Q4_1: TypeSize(32, 20),
    T.Q5_0: TypeSize(32, 22),
    T.Q5_1: TypeSize(32, 24),
    T.Q8_0: TypeSize(32, 34),
    T.Q8_1: TypeSize(32, 36),
    T.Q2_K: TypeSize(256, 84),
    T.Q3_K: TypeSize(256, 110),
    T.Q4_K: TypeSize(256, 144),
    T.Q5_K: TypeSize(256, 176),
    T.Q6_K: TypeSize(256, 210),
    T.Q8_K: TypeSize(256, 292),
    T.IQ2_XXS: TypeSize(256, 66),
    T.IQ2_XS: TypeSize(256, 74),
    T.IQ2_S: TypeSize(256, 82),
    T.IQ3_XXS: TypeSize(256, 98),
    T.IQ3_S: TypeSize(256, 110),
    T.IQ1_S: TypeSize(256, 50),
    T.IQ1_M: TypeSize(256, 56),
    T.IQ4_NL: TypeSize(32, 18),
    T.IQ4_XS: TypeSize(256, 136),
    T.TQ1_0: TypeSize(256, 54),
    T.TQ2_0: TypeSize(256, 66),
    T.MXFP4: TypeSize(32, 17),
    T.NVFP4: TypeSize(64, 36),
    T.Q1_0: TypeSize(128, 18),
    T.Q2_0: TypeSize(64, 18),
}
assert set(SIZES) == set(GGMLType)


def add_type(name: str, number: int, block_size: int, type_size: int) -> GGMLType:
    """A type of another package, which is then one of GGMLType, by its name and by its number in files. Raises ValueError for a
    name or number that is taken."""
    taken = next((t for t in GGMLType if name == t.name or number == t), None)
    if taken is not None or not re.fullmatch(r"[A-Z][A-Z0-9_]*", name):
        raise ValueError(
            f"type {name} = {number}: " + (f"there is {taken!r}" if taken is not None else "name it in capitals")
        )
    made = int.__new__(GGMLType, number)
    made._name_, made._value_ = name, number
    type.__setattr__(GGMLType, name, made)  # what the class statement does for each line; EnumType has no call for it
    GGMLType._member_map_[name] = GGMLType._value2member_map_[number] = made
    GGMLType._member_names_.append(name)
    SIZES[made] = TypeSize(block_size, type_size)
    return made


def row_size(dtype: GGMLType, ne0: int) -> int:
    """Bytes of `ne0` elements. Raises ShapeError when they are no whole number of blocks."""
    size = SIZES[dtype]
    if ne0 % size.block_size:
        raise ShapeError(f"row length {ne0} is not a multiple of the block size {size.block_size} of {dtype.name}")
    return ne0 // size.block_size * size.type_size
