"""Every block type of files against the `gguf` package, a second opinion on ordinary values. Knows no kernel."""

import gguf.quants
import numpy as np
import pytest
from op_cases import random_blocks

from pyggml.dtypes import row_size
from pyggml.quants import QUANTS, dequantize_row, quantize_row

TYPES = [t for t in QUANTS if hasattr(gguf.quants, t.name)]
# there it quantises none of these
READ_ONLY = [t for t in TYPES if QUANTS[t].can_quantize and (t.name.endswith("_K") or t.name[:2] in ("IQ", "NV"))]
NOT_MADE = [t for t in TYPES if not QUANTS[t].can_quantize]


@pytest.mark.parametrize("dtype", [t for t in TYPES if t not in (*READ_ONLY, *NOT_MADE)], ids=lambda t: t.name)
def test_same_bytes_and_same_values(dtype):
    rng = np.random.default_rng(3)
    x = np.ldexp(rng.standard_normal((200, 512)).astype(np.float32), rng.integers(-12, 8, (200, 1)))
    theirs = gguf.quants.quantize(x, gguf.GGMLQuantizationType(dtype))
    ours = quantize_row(dtype, x)
    assert ours.shape == (200, row_size(dtype, 512))
    assert (ours == theirs.view(np.uint8)).all()
    values = gguf.quants.dequantize(theirs, gguf.GGMLQuantizationType(dtype))
    assert (dequantize_row(dtype, ours, 512).view(np.uint32) == values.astype(np.float32).view(np.uint32)).all()
    assert not (dequantize_row(dtype, ours, 512)[::-1] == values).all()  # a comparison of something


@pytest.mark.parametrize("dtype", READ_ONLY, ids=lambda t: t.name)
def test_same_values(dtype):
    rng = np.random.default_rng(4)
    ours = quantize_row(
        dtype, np.ldexp(rng.standard_normal((50, 512)).astype(np.float32), rng.integers(-12, 8, (50, 1)))
    )
    values = gguf.quants.dequantize(ours, gguf.GGMLQuantizationType(dtype)).astype(np.float32)
    assert (dequantize_row(dtype, ours, 512) == values).all()
    assert not (dequantize_row(dtype, ours, 512)[::-1] == values).all()  # a comparison of something


@pytest.mark.parametrize("dtype", NOT_MADE, ids=lambda t: t.name)
def test_same_values_of_any_blocks(dtype):
    size = row_size(dtype, 512)
    blocks = np.frombuffer(random_blocks(dtype, np.random.default_rng(5), 50 * size, 1.0), np.uint8).reshape(50, size)
    values = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType(dtype)).astype(np.float32)
    assert (dequantize_row(dtype, blocks, 512) == values).all()
    assert not (dequantize_row(dtype, blocks, 512)[::-1] == values).all()  # a comparison of something
