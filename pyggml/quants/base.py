"""What every block type has to say of itself. Owns the `Quant` record."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyggml.dtypes import SIZES, GGMLType
from pyggml.errors import UnsupportedError

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Records = NDArray[Any]  # blocks seen through their layout
Ints = NDArray[np.int32]


class Searches(NamedTuple):
    """Searches for scales: the three functions of search.py, or others that find the same."""

    scales_and_minimums: Callable[..., tuple[Floats, Floats, Ints]]
    scales: Callable[[Floats, int], tuple[Floats, Ints]]
    scales_by_refinement: Callable[[Floats, int], tuple[Floats, Ints]]


@dataclass(frozen=True)
class Quant:
    """One block type. These two functions are its meaning: kernels are tested against them.

    type: the id in files and on the wire.
    layout: a packed little-endian structured dtype, one record a block; f16 fields are their bits, `<u2`.
    quantize_blocks: float32 (blocks, block size) -> records (blocks,), as llama-quantize writes them; None = this type can
        only be read.
    dequantize_blocks: records (blocks,) -> float32 (blocks, block size).
    partner: the type that the other operand of a product is converted to (`vec_dot_type` of ggml-cpu.c).
    convert_blocks: the same as `quantize_blocks` for ops that write rows, where they settle for less; None = as files.
    searches: whether `quantize_blocks` takes the searches for scales to use (search.py) as its second argument.
    """

    type: GGMLType
    layout: np.dtype[Any]
    quantize_blocks: Callable[..., Records] | None
    dequantize_blocks: Callable[[Records], Floats]
    partner: GGMLType
    convert_blocks: Callable[[Floats], Records] | None = None
    searches: bool = False

    def __post_init__(self) -> None:
        assert self.layout.itemsize == SIZES[self.type].type_size, f"{self.type.name}: {self.layout.itemsize} bytes"

    @property
    def block_size(self) -> int:
        """Elements a block."""
        return SIZES[self.type].block_size

    @property
    def can_quantize(self) -> bool:
        """Whether values can be quantised to this type."""
        return self.quantize_blocks is not None

    @property
    def type_size(self) -> int:
        """Bytes a block."""
        return SIZES[self.type].type_size

    def quantize(self, values: Floats, search: "Searches | None" = None) -> Bytes:
        """float32 (n, block_size) -> bytes (n, type_size), as files have them."""
        quantize = self._quantize()
        if search is not None and self.searches:
            return self._bytes(lambda some: quantize(some, search), values)
        return self._bytes(quantize, values)

    def convert(self, values: Floats) -> Bytes:
        """The same as ops write it (`from_float` of ggml-cpu.c)."""
        return self._bytes(self.convert_blocks or self._quantize(), values)

    def _quantize(self) -> Callable[..., Records]:
        if self.quantize_blocks is None:
            raise UnsupportedError(f"quantising to {self.type.name} is not supported")
        return self.quantize_blocks

    def _bytes(self, quantize: Callable[[Floats], Records], values: Floats) -> Bytes:
        assert values.dtype == np.float32 and values.ndim == 2 and values.shape[1] == self.block_size
        with np.errstate(all="ignore"):  # infinities and NaNs follow IEEE, as they do in C
            records = quantize(values)
        return np.ascontiguousarray(records).view(np.uint8).reshape(-1, self.type_size)

    def dequantize(self, blocks: Bytes) -> Floats:
        """bytes (n, type_size) -> float32 (n, block_size)."""
        assert blocks.dtype == np.uint8 and blocks.ndim == 2 and blocks.shape[1] == self.type_size
        records = np.ascontiguousarray(blocks).view(self.layout).reshape(-1)
        with np.errstate(all="ignore"):
            return self.dequantize_blocks(records)


def field_offsets(layout: np.dtype[Any], field: str, blocks: int = 1) -> list[int]:
    """Byte offsets of a field in so many consecutive blocks."""
    assert layout.fields is not None
    first: int = layout.fields[field][1]
    return [first + i * layout.itemsize for i in range(blocks)]
