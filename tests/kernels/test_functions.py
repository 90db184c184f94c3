"""The vector functions of UNARY and GLU against float64, in units of the last place; the halves' converters, every bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from op_cases import BF16, F16, F32, Operands
from op_check import run

from pyggml import ops
from pyggml.backend.cpu import CPUDevice
from pyggml.backend.reference.unary import FUNCTIONS
from pyggml.dtypes import GGMLType
from pyggml.ops import UnaryOp
from pyggml.quants import QUANTS

Floats = NDArray[np.float32]

# Errors in units of the last place of the exact result, or of `floor` where the result is smaller. GELU_ERF loses as
# 1 + erf does, the other GELUs as the exponent of e grows; where e^-x overflows, SIGMOID and SILU are 0.
LIMITS = {
    UnaryOp.TANH: (5, 0.0),
    UnaryOp.ELU: (4, 0.0),
    UnaryOp.SIGMOID: (4, 1e-31),
    UnaryOp.SILU: (5, 1e-29),
    UnaryOp.GELU: (20, 1e-4),
    UnaryOp.GELU_QUICK: (20, 1e-4),
    UnaryOp.GELU_ERF: (5, 0.25),
    UnaryOp.EXP: (3, 1e-37),
    UnaryOp.EXPM1: (4, 0.0),
    UnaryOp.SOFTPLUS: (5, 1e-37),
}
EXACT = (
    UnaryOp.ABS, UnaryOp.SGN, UnaryOp.NEG, UnaryOp.STEP, UnaryOp.RELU, UnaryOp.FLOOR, UnaryOp.CEIL, UnaryOp.ROUND,
    UnaryOp.TRUNC,
)  # fmt: skip


def grid() -> Floats:
    """Both signs, all magnitudes, denser about 1; borders of what integers and exponentials hold."""
    rng = np.random.default_rng(0)
    x = np.concatenate([np.logspace(-38, 38, 3000), np.linspace(0, 12, 5000), rng.uniform(0, 104, 3000)])
    border = np.array([0.5, 1.5, 2.5, 2.0**22 + 0.5, 2.0**23 - 0.5, 2.0**23, 2.0**31, 1 - 2.0**-24, 20.0, 10.0, 88.72])
    near = np.concatenate([np.nextafter(border.astype(np.float32), np.float32(s)) for s in (0, np.inf)])
    values = np.concatenate([x, border, near]).astype(np.float32)
    return np.concatenate([values, -values])


def of_cpu(kind: UnaryOp, x: Floats, dtype: GGMLType = F32) -> NDArray[np.float64]:
    from op_cases import Case

    make = Operands(np.random.default_rng(0))
    node = ops.unary(make.leaf(dtype, (x.size,), x), kind)
    return run(Case(node, make.contents, 0.0), CPUDevice())[1].reshape(-1)


def units(actual: NDArray[np.float64], exact: NDArray[np.float64], floor: float) -> float:
    """Largest difference in units of the last place; infinite where one overflows and the other is far from it."""
    f32 = exact.astype(np.float32)
    both = np.isfinite(f32) & np.isfinite(actual)
    assert np.array_equal(np.isfinite(f32), np.isfinite(actual)) or np.abs(exact[~both]).min() > 3.3e38
    size = np.maximum(np.abs(exact[both]), max(floor, 1.2e-38))
    return float((np.abs(actual[both] - exact[both]) / np.spacing(size.astype(np.float32))).max())


@pytest.mark.parametrize("kind", LIMITS, ids=lambda kind: kind.name)
def test_error(kind: UnaryOp) -> None:
    x, (limit, floor) = grid(), LIMITS[kind]
    with np.errstate(all="ignore"):
        exact = np.asarray(FUNCTIONS[kind](x.astype(np.float64)))
        error = units(of_cpu(kind, x), exact, floor)
        assert error <= limit, f"{kind.name}: {error:.2f} units"
        wrong = units(np.asarray(FUNCTIONS[kind](x.astype(np.float64) * (1 + 3e-6))), exact, floor)
    assert wrong > limit, "a slightly wrong function must not pass"


@pytest.mark.parametrize("kind", EXACT, ids=lambda kind: kind.name)
def test_exact(kind: UnaryOp) -> None:
    x = np.concatenate([grid(), np.array([np.inf, -np.inf, 0.0, -0.0, -0.25, 0.25], np.float32)])
    expected = np.asarray(FUNCTIONS[kind](x.astype(np.float64)))
    actual = of_cpu(kind, x)
    assert np.array_equal(actual, expected)
    if kind not in (UnaryOp.SGN, UnaryOp.STEP, UnaryOp.RELU, UnaryOp.ABS):
        assert np.array_equal(np.signbit(actual), np.signbit(expected)), "the sign of a zero"


@pytest.mark.parametrize("dtype", [F16, BF16], ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("kind", [*LIMITS, *EXACT, UnaryOp.HARDSWISH, UnaryOp.HARDSIGMOID], ids=lambda kind: kind.name)
def test_between_halves(kind: UnaryOp, dtype: GGMLType) -> None:
    """The formulas next to conversions: LLVM joins the two, and has got the sum of both wrong."""
    quant = QUANTS[dtype]
    x = quant.dequantize(quant.quantize(grid().reshape(-1, 1))).reshape(-1)
    x = x[np.isfinite(x)]
    with np.errstate(all="ignore"):
        exact = np.asarray(FUNCTIONS[kind](x.astype(np.float64))).astype(np.float32)
        expected = quant.dequantize(quant.quantize(exact.reshape(-1, 1))).reshape(-1).astype(np.float64)
    actual = of_cpu(kind, x, dtype)
    finite = np.isfinite(expected) & np.isfinite(actual)
    assert finite.mean() > 0.2 and np.abs(exact[~finite]).min(initial=np.inf) > (65000 if dtype == F16 else 3.3e38)
    np.testing.assert_allclose(actual[finite], expected[finite], rtol=2.0**-9 if dtype == F16 else 2.0**-7, atol=1e-6)


@pytest.mark.parametrize("dtype", [F16, BF16], ids=lambda dtype: dtype.name)
def test_every_half(dtype: GGMLType) -> None:
    """NEG of all 65536 values: what is read is exact, and comes back as it was."""
    bits = np.arange(65536, dtype=np.uint16)
    values = QUANTS[dtype].dequantize(bits.view(np.uint8).reshape(-1, 2)).reshape(-1)
    numbers = ~np.isnan(values)
    actual = of_cpu(UnaryOp.NEG, values, dtype)
    assert np.array_equal(actual[numbers], -values[numbers].astype(np.float64))
    assert np.isnan(actual[~numbers]).all()


@settings(deadline=None, max_examples=60)
@given(st.sampled_from([F16, BF16]), st.integers(0, 2**32 - 1))
def test_rounding_to_halves(dtype: GGMLType, seed: int) -> None:
    """Random bits, and numbers half way between two halves: to the bit as in quants/, NaNs aside."""
    from op_cases import Case

    rng = np.random.default_rng(seed)
    shift = 13 if dtype == F16 else 16
    bits = rng.integers(0, 2**32, 400, np.uint32)
    middle = (bits >> shift << shift) | (1 << (shift - 1))
    small = (rng.integers(0, 2**11, 400, np.uint32).astype(np.float32) * np.float32(2.0**-25)).view(np.uint32)
    x = np.concatenate([bits, middle, middle + 1, middle - 1, small]).astype(np.uint32).view(np.float32)
    make = Operands(rng)
    node = ops.cpy(make.leaf(F32, (x.size,), x), make.leaf(dtype, (x.size,), np.zeros(x.size)))
    actual = np.frombuffer(run(Case(node, make.contents, 0.0), CPUDevice())[0], np.uint16)
    expected = QUANTS[dtype].quantize(x.reshape(-1, 1)).view(np.uint16).reshape(-1)
    numbers = ~np.isnan(x)
    assert np.array_equal(actual[numbers], expected[numbers])
    infinity = 0x7C00 if dtype == F16 else 0x7F80
    assert ((actual[~numbers] & 0x7FFF) > infinity).all()
