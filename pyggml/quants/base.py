"""What every block type has to say of itself. Owns the `Quant` record; must not know any one type."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyggml.dtypes import SIZES, GGMLType

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Records = NDArray[Any]  # blocks seen through their layout


@dataclass(frozen=True)
class Quant:
    """One block type. These two functions are its meaning: kernels are tested against them.

    type: the id in files and on the wire.
    layout: a packed little-endian structured dtype, one record a block; f16 fields are their bits, `<u2`.
    quantize_blocks: float32 (blocks, block size) -> records (blocks,), as llama-quantize writes them.
    dequantize_blocks: records (blocks,) -> float32 (blocks, block size).
    partner: the type that the other operand of a product is converted to (`vec_dot_type` of ggml-cpu.c).
    """

    type: GGMLType
    layout: np.dtype[Any]
    quantize_blocks: Callable[[Floats], Records]
    dequantize_blocks: Callable[[Records], Floats]
    partner: GGMLType

    def __post_init__(self) -> None:
        assert self.layout.itemsize == SIZES[self.type].type_size, f"{self.type.name}: {self.layout.itemsize} bytes"

    @property
    def block_size(self) -> int:
        """Elements a block."""
        return SIZES[self.type].block_size

    @property
    def type_size(self) -> int:
        """Bytes a block."""
        return SIZES[self.type].type_size

    def quantize(self, values: Floats) -> Bytes:
        """float32 (n, block_size) -> bytes (n, type_size)."""
        assert values.dtype == np.float32 and values.ndim == 2 and values.shape[1] == self.block_size
        with np.errstate(all="ignore"):  # infinities and NaNs follow IEEE, as they do in C
            records = self.quantize_blocks(values)
        return np.ascontiguousarray(records).view(np.uint8).reshape(-1, self.type_size)

    def dequantize(self, blocks: Bytes) -> Floats:
        """bytes (n, type_size) -> float32 (n, block_size)."""
        assert blocks.dtype == np.uint8 and blocks.ndim == 2 and blocks.shape[1] == self.type_size
        records = np.ascontiguousarray(blocks).view(self.layout).reshape(-1)
        with np.errstate(all="ignore"):
            return self.dequantize_blocks(records)
