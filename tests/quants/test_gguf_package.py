"""Every block type of files against the `gguf` package, a second opinion on ordinary values. Knows no kernel."""

import gguf.quants
import numpy as np
import pytest

from pyggml.dtypes import GGMLType, row_size
from pyggml.quants import QUANTS, dequantize_row, quantize_row

TYPES = [t for t in QUANTS if t is not GGMLType.Q8_1]  # not in the package


@pytest.mark.parametrize("dtype", TYPES, ids=lambda t: t.name)
def test_same_bytes_and_same_values(dtype):
    rng = np.random.default_rng(3)
    x = np.ldexp(rng.standard_normal((200, 96)).astype(np.float32), rng.integers(-12, 8, (200, 1)))
    theirs = gguf.quants.quantize(x, gguf.GGMLQuantizationType(dtype))
    ours = quantize_row(dtype, x)
    assert ours.shape == (200, row_size(dtype, 96))
    assert (ours == theirs.view(np.uint8)).all()
    values = gguf.quants.dequantize(theirs, gguf.GGMLQuantizationType(dtype))
    assert (dequantize_row(dtype, ours, 96).view(np.uint32) == values.astype(np.float32).view(np.uint32)).all()
    assert not (dequantize_row(dtype, ours, 96)[::-1] == values).all()  # a comparison of something
