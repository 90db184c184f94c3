"""Tensors of any type and strides as float64 arrays, and back.

Arrays have the tensor's shape reversed: (ne3, ne2, ne1, ne0).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyggml.backend.host import ELEMENTS, view_of
from pyggml.dtypes import GGMLType
from pyggml.quants import QUANTS
from pyggml.tensor import Tensor

Values = NDArray[np.float64]

FLOATS = (GGMLType.F32, GGMLType.F16, GGMLType.BF16)
"""The types that values can be written as."""


def decode(dtype: GGMLType, raw: NDArray[Any]) -> Values:
    """Elements as `view_of` gives them -> values."""
    if dtype in ELEMENTS and dtype != GGMLType.BF16:
        with np.errstate(invalid="ignore"):  # signalling NaNs are values like others
            return raw.astype(np.float64)
    quant = QUANTS[dtype]
    outer = raw.shape if dtype == GGMLType.BF16 else (*raw.shape[:-2], raw.shape[-2] * quant.block_size)
    blocks = np.ascontiguousarray(raw).view(np.uint8).reshape(-1, quant.type_size)
    return quant.dequantize(blocks).astype(np.float64).reshape(outer)


def encode(dtype: GGMLType, values: NDArray[Any]) -> NDArray[Any]:
    """Values -> elements as `view_of` gives them: rounded to F32 first, then to the type, as in ggml."""
    f32 = np.ascontiguousarray(values, np.float32)
    if dtype in (GGMLType.F32, GGMLType.F16):
        return f32.astype(ELEMENTS[dtype])
    quant = QUANTS[dtype]
    blocks = quant.convert(f32.reshape(-1, quant.block_size))
    if dtype == GGMLType.BF16:
        return blocks.view(np.uint16).reshape(values.shape)
    return blocks.reshape(*values.shape[:-1], values.shape[-1] // quant.block_size, quant.type_size)


def read(tensor: Tensor) -> Values:
    return decode(tensor.type, view_of(tensor))


def write(tensor: Tensor, values: NDArray[Any]) -> None:
    view_of(tensor)[...] = encode(tensor.type, values)


def option(node: Tensor, index: int) -> Tensor | None:
    """A source that may be absent."""
    return node.src[index] if index < len(node.src) else None


def source(node: Tensor, index: int) -> Tensor:
    """A source that ops.check has found to be there."""
    tensor = node.src[index]
    assert tensor is not None
    return tensor


def not_among(allowed: Iterable[GGMLType], *tensors: Tensor) -> str | None:
    """The reason if some tensor has none of the allowed types."""
    allowed = tuple(allowed)
    for t in tensors:
        if t.type not in allowed:
            return f"type {t.type.name} is not supported (supported: {', '.join(a.name for a in allowed)})"
    return None
