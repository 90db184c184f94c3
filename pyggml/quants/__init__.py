"""The block types that are computed here, one file each. Owns the registry and the conversion of rows; must not know
Numba: this is the plain meaning that kernels are tested against.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyggml.dtypes import GGMLType, row_size
from pyggml.errors import ShapeError, UnsupportedError
from pyggml.quants.base import Bytes, Floats, Quant, Searches
from pyggml.quants.bf16 import BF16
from pyggml.quants.f16 import F16
from pyggml.quants.f32 import F32
from pyggml.quants.iq1_m import IQ1_M
from pyggml.quants.iq1_s import IQ1_S
from pyggml.quants.iq2_s import IQ2_S
from pyggml.quants.iq2_xs import IQ2_XS
from pyggml.quants.iq2_xxs import IQ2_XXS
from pyggml.quants.iq3_s import IQ3_S
from pyggml.quants.iq3_xxs import IQ3_XXS
from pyggml.quants.iq4_nl import IQ4_NL
from pyggml.quants.iq4_xs import IQ4_XS
from pyggml.quants.mxfp4 import MXFP4
from pyggml.quants.nvfp4 import NVFP4
from pyggml.quants.q1_0 import Q1_0
from pyggml.quants.q2_0 import Q2_0
from pyggml.quants.q2_k import Q2_K
from pyggml.quants.q3_k import Q3_K
from pyggml.quants.q4_0 import Q4_0
from pyggml.quants.q4_1 import Q4_1
from pyggml.quants.q4_k import Q4_K
from pyggml.quants.q5_0 import Q5_0
from pyggml.quants.q5_1 import Q5_1
from pyggml.quants.q5_k import Q5_K
from pyggml.quants.q6_k import Q6_K
from pyggml.quants.q8_0 import Q8_0
from pyggml.quants.q8_1 import Q8_1
from pyggml.quants.q8_k import Q8_K
from pyggml.quants.tq1_0 import TQ1_0
from pyggml.quants.tq2_0 import TQ2_0

__all__ = ["QUANTS", "TYPES", "Quant", "add", "dequantize_row", "quant", "quantizable", "quantize_row"]

TYPES = (
    *(F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q8_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q8_K, IQ4_NL, IQ4_XS),
    *(IQ1_S, IQ1_M, IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S, Q1_0, Q2_0, TQ1_0, TQ2_0, MXFP4, NVFP4),
)

QUANTS: dict[GGMLType, Quant] = {q.type: q for q in TYPES}


def add(q: Quant) -> None:
    """Know a type of another package (dtypes.add_type)."""
    assert q.type not in QUANTS, q.type
    QUANTS[q.type] = q


def quantizable() -> tuple[GGMLType, ...]:
    """The types that values can be quantised to."""
    return tuple([t for t, q in QUANTS.items() if q.can_quantize])


def quant(dtype: GGMLType) -> Quant:
    """Raises UnsupportedError, which lists the types that there are."""
    found = QUANTS.get(dtype)
    if found is None:
        known = ", ".join(t.name for t in QUANTS)
        raise UnsupportedError(f"{GGMLType(dtype).name} is not supported; these types are: {known}")
    return found


def quantize_row(dtype: GGMLType, values: NDArray[Any], search: Searches | None = None) -> Bytes:
    """float32 (..., ne0) -> bytes (rows, row size), every row of `values` in order; the bytes that llama-quantize writes.

    search  functions that find scales as those of search.py do, but faster
    Raises ShapeError when ne0 is no whole number of blocks.
    """
    q = quant(dtype)
    ne0 = values.shape[-1]
    size = row_size(dtype, ne0)
    blocks = np.ascontiguousarray(values, np.float32).reshape(-1, q.block_size)
    return q.quantize(blocks, search).reshape(values.size // ne0 if ne0 else 0, size)


def dequantize_row(dtype: GGMLType, data: NDArray[Any] | bytes | bytearray | memoryview, ne0: int) -> Floats:
    """Bytes of any number of whole rows of `ne0` elements, in any shape -> float32 (rows, ne0).

    Raises ShapeError when the bytes are no whole number of rows.
    """
    q = quant(dtype)
    size = row_size(dtype, ne0)
    if isinstance(data, np.ndarray):
        raw = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
    else:
        raw = np.frombuffer(data, np.uint8)
    if size == 0 or raw.size % size:
        raise ShapeError(
            f"{raw.size} bytes are not a multiple of the {size} bytes of a row of {ne0} elements of {q.type.name}"
        )
    return q.dequantize(raw.reshape(-1, q.type_size)).reshape(-1, ne0)
