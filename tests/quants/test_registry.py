"""The registry, the sizes and the errors of `pyggml.quants`. Knows no arithmetic."""

import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import pyggml.quants
from pyggml.dtypes import SIZES, GGMLType, row_size
from pyggml.errors import ShapeError, UnsupportedError
from pyggml.quants import QUANTS, TYPES, Quant, dequantize_row, quant, quantize_row

HELPERS = {"__init__", "base", "fp4", "codebook", "rounding", "search", "super_blocks", "ternary"}
MADE = [q for q in TYPES if q.can_quantize]
COARSE = {
    GGMLType.Q2_K: 1.3, GGMLType.Q3_K: 0.8, GGMLType.Q1_0: 4.0, GGMLType.Q2_0: 2.3, GGMLType.TQ1_0: 2.3, GGMLType.TQ2_0: 2.3,
    GGMLType.MXFP4: 1.1, GGMLType.NVFP4: 0.8,
}  # fmt: skip
#  # the largest error of normal values; elsewhere it is below 0.4


def test_each_file_is_one_type_and_is_registered():
    files = {path.stem for path in Path(pyggml.quants.__file__).parent.glob("*.py")} - HELPERS
    found = []
    for stem in sorted(files):
        module = importlib.import_module(f"pyggml.quants.{stem}")
        own = [v for name, v in vars(module).items() if isinstance(v, Quant) and name == stem.upper()]
        assert len(own) == 1, f"{stem}.py defines no {stem.upper()}"
        assert own[0].type.name == stem.upper()
        found += own
    assert {id(q) for q in found} == {id(q) for q in TYPES} and len(TYPES) == len(QUANTS) == len(found)


@pytest.mark.parametrize("q", TYPES, ids=lambda q: q.type.name)
def test_layout_and_partner(q):
    assert q.layout.itemsize == SIZES[q.type].type_size == q.type_size
    assert not q.layout.isalignedstruct and q.layout.names is not None
    assert q.partner in QUANTS and q.block_size % QUANTS[q.partner].block_size == 0
    assert QUANTS[q.partner].partner is q.partner


def test_a_layout_of_the_wrong_size_is_refused():
    with pytest.raises(AssertionError, match=r"Q4_1: 18 bytes"):
        Quant(GGMLType.Q4_1, QUANTS[GGMLType.Q4_0].layout, lambda x: x, lambda x: x, GGMLType.Q8_1)


@pytest.mark.parametrize("q", MADE, ids=lambda q: q.type.name)
def test_rows_of_any_number_and_shape(q):
    n = max(64, q.block_size)
    x = np.random.default_rng(1).standard_normal((2, 3, 5, n)).astype(np.float32)
    blocks = quantize_row(q.type, x)
    size = row_size(q.type, n)
    assert blocks.shape == (30, size) and blocks.dtype == np.uint8
    whole = dequantize_row(q.type, blocks, n)
    assert whole.shape == (30, n) and whole.dtype == np.float32
    assert (dequantize_row(q.type, blocks.tobytes(), n) == whole).all()
    assert (dequantize_row(q.type, memoryview(blocks.tobytes()), n) == whole).all()
    assert (dequantize_row(q.type, blocks.reshape(2, 3, 5, size)[:, 1], n) == whole.reshape(2, 3, 5, n)[:, 1].reshape(10, n)).all()  # fmt: skip
    unaligned = np.frombuffer(b"\0" + blocks.tobytes(), np.uint8)[1:]
    assert (dequantize_row(q.type, unaligned, n) == whole).all()
    assert quantize_row(q.type, x[:0]).shape == (0, size) and dequantize_row(q.type, b"", n).shape == (0, n)
    assert np.abs(whole - x.reshape(30, n)).max() < COARSE.get(q.type, 0.4)


def test_the_caller_keeps_its_arrays():
    for q in MADE:
        n = max(64, q.block_size)
        x = np.linspace(-1, 1, n, dtype=np.float32)[None]
        blocks = quantize_row(q.type, x)
        values, kept = dequantize_row(q.type, blocks, n), blocks.copy()
        values += 1
        assert (blocks == kept).all() and (x == np.linspace(-1, 1, n, dtype=np.float32)).all()


def test_errors_name_the_numbers():
    with pytest.raises(ShapeError, match="row length 33 is not a multiple of the block size 32"):
        quantize_row(GGMLType.Q4_0, np.zeros((1, 33), np.float32))
    with pytest.raises(ShapeError, match="35 bytes are not a multiple of the 36 bytes of a row of 64 elements"):
        dequantize_row(GGMLType.Q4_0, bytes(35), 64)
    with pytest.raises(UnsupportedError, match="F64 is not supported; these types are: F32, F16"):
        quant(GGMLType.F64)
    with pytest.raises(UnsupportedError, match="quantising to IQ2_XXS is not supported"):
        quantize_row(GGMLType.IQ2_XXS, np.zeros((1, 256), np.float32))


def test_imports_no_numba():
    script = "import sys, pyggml.quants; sys.exit(any(m in sys.modules for m in ('numba', 'llvmlite', 'gguf')))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
