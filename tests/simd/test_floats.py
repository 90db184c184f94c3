"""Primitives of floats and of half precision against NumPy, on values at the edges, at each CPU level.

Kernels that use them are in tests/support/primitive_kernels.
"""

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from levels import OTHERS, run_at
from primitive_checks import F32, Array, kernel, mixed, same

from pyggml import jit

HAS_FMA = jit.level() in ("v3", "v4", "vnni")


@pytest.mark.parametrize("level", OTHERS)
def test_at_level(level: str) -> None:
    run_at(level, __file__)


def arithmetic(a: Array, b: Array, c: Array) -> dict[str, Array]:
    with np.errstate(all="ignore"):
        return {
            "add": a + b,
            "sub": a - b,
            "mul": a * b,
            "div": a / b,
            "fma": a * b + c,
            "maximum": np.where(a > b, a, b),
            "minimum": np.where(a < b, a, b),
            "absolute": np.abs(a),
            "negative": -a,
            "sqrt": np.sqrt(a),
            "where_less": np.where(a < b, c, a),
            "where_equal": np.where(a == b, c, a),
            "where_nan": np.where(np.isnan(a), a, b),
            "copy_sign": np.copysign(a, b),
            "bits": a,
        }


def run_arithmetic(a: Array, b: Array, c: Array) -> dict[str, Array]:
    names = list(arithmetic(a, b, c))
    out = np.zeros((len(names), len(a)), F32)
    kernel("floats.arithmetic", "pppip")(a, b, c, len(a), out)
    return dict(zip(names, out, strict=True))


def test_float_arithmetic() -> None:
    a, b, c = (mixed(16 * 512, seed) for seed in range(3))
    b[::7] = a[::7]
    actual, expected = run_arithmetic(a, b, c), arithmetic(a, b, c)
    for name, e in expected.items():
        if name != "fma":
            same(actual[name], e, name)
    for name in ("negative", "absolute", "copy_sign", "bits"):  # these keep a NaN's bits
        same(actual[name].view(np.uint32), expected[name].view(np.uint32), name)
    special = ~np.isfinite([a, b, c]).all(axis=0)
    with np.errstate(all="ignore"):
        exact = (a.astype(np.float64) * b + c).astype(F32) if HAS_FMA else a * b + c
    same(actual["fma"][special], exact[special], "fma")


def test_fma_rounds_once_where_the_level_has_it() -> None:
    rng = np.random.default_rng(5)
    a, b = (rng.normal(size=512).astype(F32) for _ in range(2))
    c = (-a * b * rng.choice([0, 1, 1 + 1e-6], 512)).astype(F32)
    actual = run_arithmetic(a, b, c)["fma"]
    if not HAS_FMA:
        same(actual, a * b + c, "fma")
        return

    def is_nearest(i: int, r: np.float32) -> bool:
        exact = Fraction(float(a[i])) * Fraction(float(b[i])) + Fraction(float(c[i]))
        off = abs(Fraction(float(r)) - exact)
        return all(off <= abs(Fraction(float(np.nextafter(r, F32(s)))) - exact) for s in (-np.inf, np.inf))

    assert all(is_nearest(i, actual[i]) for i in range(512))
    assert not all(is_nearest(i, (a * b + c)[i]) for i in range(512))


def test_whole_numbers() -> None:
    rng = np.random.default_rng(1)
    halves = np.arange(-2000, 2000, dtype=F32) / F32(2)
    x = np.concatenate([halves, rng.uniform(-4194303, 4194303, 16 * 300).astype(F32)])
    x = np.concatenate([x, F32([0.49999997, -0.49999997, 4194303.5, -4194303.5]), np.zeros(-len(x) % 16 + 12, F32)])
    out = np.zeros((2, len(x)), F32)
    kernel("floats.whole_numbers", "pip")(x, len(x), out)
    assert (out[0] == np.rint(x)).all()  # the sign of a zero may be lost
    assert (out[1] == np.trunc(x)).all()


def tree(x: Array) -> Array:
    """Sum over the last axis: upper half onto lower half."""
    while x.shape[-1] > 1:
        half = x.shape[-1] // 2
        x = x[..., :half] + x[..., half:]
    return x[..., 0]


def test_over_lanes() -> None:
    rng = np.random.default_rng(2)
    x = (rng.normal(size=(400, 16)) * 10.0 ** rng.integers(-6, 6, (400, 16))).astype(F32)
    x[::5, 3], x[::7, 0], x[1::5, 9] = np.inf, np.nan, x[1::5, 2]
    out = np.zeros((400, 5), F32)
    kernel("floats.over_lanes", "pip")(x, x.size, out)
    same(out[:, 0], tree(x), "hsum")
    plain = np.sum(x, axis=1, dtype=F32)
    assert (plain[np.isfinite(plain)] != tree(x)[np.isfinite(plain)]).any()  # another order is another sum
    no_nan = ~np.isnan(x).any(axis=1)
    same(out[no_nan, 1], x[no_nan].max(axis=1), "hmax")
    third = x[np.arange(400), np.arange(400) % 16]
    same(out[:, 2], third, "lane")
    powers = 1 << np.arange(16)
    assert (out[:, 3].view(np.int32) == ((x == third[:, None]) * powers).sum(axis=1)).all()
    assert (out[:, 4].view(np.int32) == (np.isnan(x) * powers).sum(axis=1)).all()


def ulps(actual: Array, exact: Array) -> float:
    """Largest distance from the exact value in units of the last place of the correctly rounded one."""
    rounded = exact.astype(F32)
    ok = np.isfinite(rounded)
    same(actual[~ok], rounded[~ok], "not finite")
    return float((np.abs(actual[ok] - exact[ok]) / np.spacing(np.abs(rounded[ok]))).max())


def run_functions(x: Array) -> Array:
    out = np.zeros((3, len(x)), F32)
    kernel("floats.functions", "pip")(x, len(x), out)
    return out


@pytest.mark.parametrize(
    ("row", "exact_function", "low", "high", "bound"),
    [
        (0, np.exp, -105, 89, 3.0),
        (1, np.exp2, -151, 129, 3.0),
        (2, np.tanh, -10, 10, 4.0),
        (2, np.tanh, -0.3, 0.3, 2.0),
    ],
    ids=["exp", "exp2", "tanh", "tanh near 0"],
)
def test_functions(row: int, exact_function: Callable[[Array], Array], low: float, high: float, bound: float) -> None:
    rng = np.random.default_rng(3)
    x = np.concatenate([np.linspace(low, high, 16 * 4096, dtype=F32), rng.uniform(low, high, 16 * 8192).astype(F32)])
    with np.errstate(all="ignore"):
        exact = exact_function(x.astype(np.float64))
        exact = np.where(np.abs(exact) < 3.4028235677973366e38, exact, np.inf)  # halfway to 2^128
    normal = np.abs(exact) >= 2.0**-126 if row != 2 else np.ones(len(x), bool)
    actual = run_functions(x)[row]
    assert ulps(actual[normal], exact[normal]) <= bound
    assert (np.abs(actual[~normal] - exact[~normal]) <= 1.5 * 2.0**-149).all()  # denormals round once
    wrong = actual * F32(1 + 6e-7)
    assert ulps(wrong[normal], exact[normal]) > bound


def test_functions_at_the_edges() -> None:
    x = np.array([0, -0.0, -104.5, -1000, -np.inf, 89, 1000, np.inf, np.nan, 2e-38, 3, -149, 127, -126, 1, 10.5], F32)
    e, e2, t = run_functions(x)
    same(e[:10], np.array([1, 1, 0, 0, 0, np.inf, np.inf, np.inf, np.nan, 1], F32), "exp")
    same(e2[[3, 4, 6, 7, 8]], np.array([0, 0, np.inf, np.inf, np.nan], F32), "exp2")
    same(t[[3, 4, 6, 7, 8]], np.array([-1, -1, 1, 1, np.nan], F32), "tanh")


def test_whole_powers_are_exact() -> None:
    n = np.arange(-149, 128)
    n = np.concatenate([n, np.zeros(-len(n) % 16, n.dtype)])
    same(run_functions(n.astype(F32))[1], np.ldexp(F32(1), n), "exp2")


def test_every_half() -> None:
    h = np.arange(65536, dtype=np.uint16)
    out = np.zeros((3, 65536), F32)
    kernel("floats.from_half", "pip")(h, 65536, out)
    with np.errstate(all="ignore"):
        expected = h.view(np.float16).astype(F32)
    same(out[0], expected, "f16")
    same(out[2], expected, "f16_at")
    assert (np.signbit(out[0]) == (h >= 0x8000)).all()
    same(out[1].view(np.uint32), h.astype(np.uint32) << 16, "bf16")


def half_edges() -> Array:
    """Every f16, the points halfway between neighbours, and what lies next to those; infinities, NaNs, random bits."""
    with np.errstate(all="ignore"):
        h = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(F32)
        middle = (h[:-1] + h[1:]) / F32(2)
        middle = np.concatenate([middle, F32([65520, 2.0**-25, 2.0**-26, 1e-38, 0])])
        x = np.concatenate(
            [h, middle, np.nextafter(middle, F32(np.inf)), np.nextafter(middle, F32(-np.inf)), mixed(4096)]
        )
    x = np.concatenate([x, -x])
    return np.concatenate([x, np.zeros(-len(x) % 16, F32)])


def test_to_half() -> None:
    x = half_edges()
    out = np.zeros((3, len(x)), np.uint16)
    kernel("floats.to_half", "pip")(x, len(x), out)
    with np.errstate(all="ignore"):
        expected = x.astype(np.float16)
    same(out[0].view(np.float16), expected, "f16")
    nan = np.isnan(x)
    sign = (x.view(np.uint32) >> 16 & 0x8000).astype(np.uint16)
    assert (out[0][nan] & 0x8000 == sign[nan]).all()
    same(out[2], np.where(nan, sign | 0x7E00, expected.view(np.uint16)), "put_f16")
    w = x.view(np.uint32).astype(np.uint64)
    rounded = (w + 0x7FFF + (w >> 16 & 1)) >> 16
    same(out[1], np.where(nan, w >> 16 | 64, rounded).astype(np.uint16), "bf16")
    towards_zero = (w >> 16).astype(np.uint16)
    assert (towards_zero != out[1]).any()
