"""Every primitive of pyggml.simd against NumPy, on values at the edges, at each CPU level.

Kernels that use them are in tests/support/primitive_kernels.
"""

import signal
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from guard_page import at_the_end
from hypothesis import given, settings
from hypothesis import strategies as st
from levels import OTHERS, run_at
from numpy.typing import NDArray

from pyggml import jit
from pyggml.jit import Spec

Array = NDArray[Any]
F32 = np.float32
POISON = 0xA5
SUPPORT = Path(__file__).parents[1] / "support"
HAS_FMA = jit.level() in ("v3", "v4", "vnni")


@pytest.mark.parametrize("level", OTHERS)
def test_at_level(level: str) -> None:
    run_at(level, __file__)


def kernel(name: str, signature: str, *args: str | int) -> Callable[..., Any]:
    """`name` = "file.factory" of primitive_kernels; signature: one letter an argument, p = address, i = i64."""
    file, _, factory = name.partition(".")
    kinds = ",".join({"p": "u64", "i": "i64"}[c] for c in signature)
    call = jit.function(Spec(f"primitive_kernels.{file}", factory, args, f"void({kinds})"))

    def run(*values: Array | int) -> None:
        call(*(v if isinstance(v, int) else v.ctypes.data for v in values))

    return run


def poisoned(size: int) -> Array:
    return np.full(size, POISON, np.uint8)


def same(actual: Array, expected: Array, what: str = "") -> None:
    """Equal to the bit, but that any NaN is as good as any other."""
    a, e = np.ascontiguousarray(actual), np.ascontiguousarray(expected)
    assert a.dtype == e.dtype and a.shape == e.shape, (what, a.dtype, e.dtype, a.shape, e.shape)
    bits = f"u{a.itemsize}"
    wrong = a.view(bits) != e.view(bits)
    if a.dtype.kind == "f":
        wrong &= ~(np.isnan(a) & np.isnan(e))
    if wrong.any():
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise AssertionError(f"{what} {at}: {a[at]!r}, not {e[at]!r}; {wrong.sum()} differ")


def bits(*values: int) -> Array:
    return np.array(values, np.uint32).view(F32)


EDGES = np.concatenate(
    [
        bits(0, 1 << 31, 1, 0x80000001, 0x7FFFFF, 0x800000, 0x807FFFFF, 0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000, 0xFF800000),
        bits(0x7FC00000, 0xFFC00000, 0x7F800001, 0xFFBFFFFF, 0x3F7FFFFF, 0x3F800001, 0x4B000000, 0xCB000001),
        np.array([1, -1, 0.5, -0.5, 1.5, 2.5, 3.1415927, -2e-39, 65504, 65520, 1e20, -1e-20], F32),
    ]
)


def mixed(count: int, seed: int = 0) -> Array:
    """Edges, random bits, ordinary numbers."""
    rng = np.random.default_rng(seed)
    x = np.concatenate([rng.integers(0, 1 << 32, count, np.uint32).view(F32), rng.normal(size=count).astype(F32)])
    x = rng.choice(np.concatenate([np.repeat(EDGES, 1 + count // len(EDGES)), x]), count)
    return x


# ---- floats


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


# ---- halves


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


# ---- integers


def test_integer_arithmetic() -> None:
    rng = np.random.default_rng(4)
    edges = np.array([0, 1, -1, 2**31 - 1, -(2**31), 255, -128, 127, 128, 1 << 30], np.int32)
    a = rng.choice(np.concatenate([edges, rng.integers(-(2**31), 2**31, 200).astype(np.int32)]), (256, 16))
    b = rng.permutation(a.ravel()).reshape(a.shape)
    s = rng.integers(0, 32, a.shape).astype(np.int32)
    low = (a & 255).astype(np.uint8)
    expected = [
        a + b, a - b, a * b, a & b, a | b, a ^ b, a << s, a >> s, a[:, ::-1], a.astype(F32).view(np.int32),
        low.astype(np.int32), low.view(np.int8).astype(np.int32), low.view(np.int8).astype(np.int32),
        np.repeat(a.sum(axis=1, dtype=np.int32)[:, None], 16, axis=1),
    ]  # fmt: skip
    out = np.zeros((15, 256, 16), np.int32)
    kernel("integers.arithmetic", "pppip")(a, b, s, a.size, out)
    for i, e in enumerate(expected):
        same(out[i], np.ascontiguousarray(e), str(i))
    same(out[14][:, :4], np.ascontiguousarray(a[:, [0, 5, 5, 12]]), "shuffler of join")


def test_bytes_shifted() -> None:
    x = np.random.default_rng(6).integers(0, 256, 64).astype(np.uint8)
    s = (np.arange(64) % 8).astype(np.uint8)
    out = np.zeros((3, 64), np.uint8)
    kernel("integers.bytes_shifted", "ppp")(x, s, out)
    same(out, np.stack([x >> s, x << s, (x.view(np.int8) >> s.view(np.int8)).view(np.uint8)]))


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20))
@settings(deadline=None, max_examples=50)
def test_single_bits(values: list[int]) -> None:
    x = np.array([0, *values], np.uint64)
    out = np.zeros((len(x), 2), np.int64)
    kernel("integers.single_bits", "pip")(x, len(x), out)
    assert out.tolist() == [[64, -1], *[[(i & -i).bit_length() - 1 if i else 64, i.bit_length() - 1] for i in values]]


def four_products(w: Array, s: Array) -> Array:
    return (w.astype(np.int64) * s.astype(np.int64)).reshape(-1, 16, 4).sum(axis=2)


@pytest.mark.parametrize("start", [0, 2**31 - 1000, -(2**31)])
def test_dot_products_are_exact(start: int) -> None:
    """Every pair of values, four times over in a lane: the worst that the 16-bit sums meet; then random ones."""
    rng = np.random.default_rng(7)
    acc = np.full(16, start, np.int32)
    top = 256 if jit.level() in ("vnni", "generic") else 64

    def run(w: Array, s: Array) -> Array:
        out = np.zeros((2, len(w) // 64, 16), np.int32)
        kernel("integers.dots", "pppip")(acc, w, s, len(w) // 64, out)
        return out

    def pairs(ws: Array, ss: Array) -> tuple[Array, Array]:
        w, s = (np.repeat(g.ravel(), 4) for g in np.meshgrid(ws, ss))
        more = 64 * 100 + -len(w) % 64
        return np.concatenate([w, rng.choice(ws, more)]), np.concatenate([s, rng.choice(ss, more)])

    w, s = pairs(np.arange(top).astype(np.uint8), np.arange(-128, 128).astype(np.int8))
    same(run(w, s)[0], (four_products(w, s) + start).astype(np.int32), "u8 x i8")
    w, s = pairs(np.arange(-128, 128).astype(np.int8), np.arange(-127, 128).astype(np.int8))
    bias = 128 if jit.level() == "vnni" else 0
    expected = four_products(w, s) + bias * four_products(np.ones_like(w), s) + start
    same(run(w, s)[1], expected.astype(np.int32), "weights")


def test_pieces_of_blocks() -> None:
    from primitive_kernels.integers import BITS, BITS_ONE, BYTES, BYTES_ONE, NIBBLES, NIBBLES_ONE

    block = np.random.default_rng(8).integers(0, 256, 68).astype(np.uint8)
    end = at_the_end(68)
    end[:] = block
    out = np.zeros((6, 64), np.uint8)
    kernel("integers.pieces", "pp")(end, out)

    def nibbles(at: int) -> Array:
        q = block[at : at + 16]
        return np.concatenate([q & 15, q >> 4])

    def flags(at: int, value: int) -> Array:
        return np.unpackbits(block[at : at + 4], bitorder="little") * np.uint8(value)

    def in_two(*halves: Array) -> Array:
        return np.concatenate([*halves, np.zeros(32, np.uint8)])[:64]

    same(out[0], in_two(*map(nibbles, NIBBLES)))
    same(out[1], in_two(*map(nibbles, NIBBLES_ONE)))
    same(out[2], in_two(*(flags(o, 16) for o in BITS)))
    same(out[3], in_two(*(flags(o, 255) for o in BITS_ONE)))
    same(out[4], in_two(*(block[o : o + 32] for o in BYTES)))
    same(out[5], in_two(*(block[o : o + 32] for o in BYTES_ONE)))


def test_grids_and_signs() -> None:
    from primitive_kernels.integers import RUNS_OF_4, RUNS_OF_8

    rng = np.random.default_rng(9)
    x = np.array([0, 199, 7, *rng.integers(0, 200, 12), 199], np.int32)
    signs, values = rng.integers(0, 256, 8, np.uint8), rng.integers(0, 256, 64, np.uint8)
    out = poisoned(192)
    kernel("integers.grids", "ppp")(x, np.concatenate([signs, values]), out)
    same(out[:64], RUNS_OF_8[x[:8]].reshape(-1), "runs of eight")
    same(out[64:128], RUNS_OF_4[x].reshape(-1), "runs of four")
    minus = np.unpackbits(signs, bitorder="little") == 1
    same(out[128:], np.where(minus, -values.view(np.int8), values.view(np.int8)).view(np.uint8), "signs")


def test_tables_and_words() -> None:
    from primitive_kernels.integers import LEVELS

    levels = np.array(LEVELS, np.int8)
    for seed in range(4):
        x = np.random.default_rng(seed).integers(0, 16, 64).astype(np.uint8)
        out = np.zeros(176, np.uint8)
        kernel("integers.tables", "pp")(x, out)
        found = levels[x].view(np.uint8)
        same(out[:112], np.concatenate([found, found[:32], found[:16]]))
        same(out[112:].view(np.uint32), x.view(np.uint32) << np.uint32(3))


def test_constants_and_broadcasts() -> None:
    x = np.array([0x83, 0x7F, 0x12, 0xC1], np.uint8)
    out = poisoned(640)
    kernel("integers.constants", "pp")(x, out)
    four = np.tile(x, 16)
    expected = [
        np.arange(16, dtype=np.int32).view(np.uint8), np.zeros(64, np.uint8), np.full(64, 300 & 255, np.uint8),
        four[:32], np.zeros(32, np.uint8), four, four, four, four, np.zeros(128, np.uint8),
    ]  # fmt: skip
    same(out, np.concatenate(expected))


# ---- memory


@pytest.mark.parametrize("count", range(17))
def test_parts_touch_nothing_beyond(count: int) -> None:
    values = mixed(16, count)[:count]
    end = at_the_end(4 * count)
    end[:] = values.view(np.uint8)
    out = np.zeros((5, 16), F32)
    kernel("memory.parts", "pip")(end, count, out)
    halves = np.zeros(16, np.uint16)
    halves[:count] = values.view(np.uint16)[count:]
    floats = np.zeros(16, F32)
    floats[:count] = values
    same(out[0].view(np.uint32), floats.view(np.uint32), "f32")
    same(out[1].view(np.int32), halves.astype(np.int32), "u16")
    same(out[2].view(np.uint32), floats.view(np.uint32), "F32")
    with np.errstate(all="ignore"):
        same(out[3], halves.view(np.float16).astype(F32), "F16")
    same(out[4].view(np.uint32), halves.astype(np.uint32) << 16, "BF16")


@pytest.mark.parametrize("count", range(17))
def test_stores_touch_nothing_beyond(count: int) -> None:
    x = np.arange(1, 17, dtype=F32)
    f32, u16 = at_the_end(64 + 4 * count), at_the_end(64 + 2 * count)
    f32[:], u16[:] = POISON, POISON
    store = kernel("memory.store_parts", "pipp")
    store(x, count, f32[64:], u16[64:])
    same(f32, np.concatenate([poisoned(64), x[:count].view(np.uint8)]))
    same(u16, np.concatenate([poisoned(64), x[:count].astype(np.float16).view(np.uint8)]))
    wide, wide16 = poisoned(128), poisoned(128)
    store(x, count, wide, wide16)
    assert (wide[4 * count :] == POISON).all() and (wide16[2 * count :] == POISON).all()
    out = np.zeros(16, F32)
    kernel("memory.select", "pip")(x, count, out)
    assert out.tolist() == [*x[:count], *[-1.0] * (16 - count)]


def test_a_read_beyond_is_caught() -> None:
    """The memory that these tests use tells a primitive that reads whole registers from one that does not."""
    script = f"""
import sys; sys.path[:0] = [{str(SUPPORT)!r}, {str(Path(__file__).parent)!r}]
import test_simd as t
import numpy as np
end, out = t.at_the_end(64), np.zeros(16, np.float32)
read = t.kernel("memory.whole_at_the_end", "pip")
read(end, 15, out)
print("inside", flush=True)
read(end[4:], 15, out)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert (done.stdout, done.returncode) == ("inside\n", -signal.SIGSEGV), done.stderr


def test_whole_registers() -> None:
    x = at_the_end(32)
    x[:] = np.random.default_rng(9).integers(0, 256, 32).astype(np.uint8)
    out = np.zeros(224, np.uint8)
    kernel("memory.whole", "pp")(x, out)
    with np.errstate(all="ignore"):
        same(out[:64].view(F32), x.view(np.float16).astype(F32))
    same(out[64:128].view(np.uint32), x.view(np.uint16).astype(np.uint32) << 16)
    same(out[128:], np.concatenate([x[:16], x, x[:16], x]))


@pytest.mark.parametrize("count", [0, 1, 5, 16])
@pytest.mark.parametrize("stride", [4, 10, 64])
def test_lanes_that_lie_apart(stride: int, count: int) -> None:
    size = max(count - 1, 0) * stride + 4 * (count > 0)
    values = np.random.default_rng(10).integers(0, 256, size).astype(np.uint8)
    x, out = at_the_end(size), at_the_end(64 + size)
    x[:], out[:] = values, POISON
    kernel("memory.strided", "piip")(x, stride, count, out)
    expected = poisoned(64 + size)
    expected[:64] = 0
    for i in range(count):
        expected[4 * i : 4 * i + 4] = expected[64 + stride * i :][:4] = values[stride * i :][:4]
    same(out, expected)


def test_gathers_read_their_halves_only() -> None:
    h = np.array([1.5, -2.25, 65504, 6e-8, -0.0], np.float16)
    x, rows = at_the_end(42), at_the_end(26)
    x[:] = POISON
    for i in range(3):
        x[20 * i : 20 * i + 2] = h[i : i + 1].view(np.uint8)
    for i in range(5):
        rows[6 * i : 6 * i + 2] = h[i : i + 1].view(np.uint8)
    out = np.zeros(16, F32)
    kernel("memory.gathered", "pp")(x, out)
    same(out, np.concatenate([h[:3].astype(F32), np.zeros(13, F32)]))
    pairs = np.concatenate([x, h[3:4].view(np.uint8)])  # the last pair ends the memory
    x = at_the_end(44)
    x[:] = pairs
    kernel("memory.pairs", "pp")(x, out)
    same(
        out,
        np.concatenate(
            [x[[*range(4), *range(20, 24), *range(40, 44)]].view(np.float16).astype(F32), np.zeros(10, F32)]
        ),
    )
    kernel("memory.column", "pp")(rows, out)
    same(out, h[[0, 1, 2, 3, *[4] * 12]].astype(F32))


def test_copy_bytes_may_overlap() -> None:
    x = np.arange(200, dtype=np.uint8)
    for to, source in ((0, 100), (10, 3), (3, 10)):
        y = x.copy()
        kernel("memory.copied", "ppi")(y[to:], y[source:], 90)
        expected = x.copy()
        expected[to : to + 90] = x[source : source + 90]
        same(y, expected)


def test_scatter() -> None:
    x, out = np.arange(16, dtype=np.int32), poisoned(100)
    kernel("memory.scattered", "pp")(x, out)
    expected = poisoned(100)
    for i in range(8):
        expected[12 * i : 12 * i + 4] = x[i : i + 1].view(np.uint8)
    same(out, expected)


def test_scalars_at_any_address() -> None:
    x = np.random.default_rng(11).integers(0, 256, 64).astype(np.uint8)
    x[8:16] = np.float64([-12345.5]).view(np.uint8)
    out = np.zeros(59, np.uint8)
    kernel("memory.scalars", "pp")(x, out)
    expected = [x[:27], x[8:12], x[8:12], x[8:16], x[8:16], np.int64([-12345]).view(np.uint8)]
    same(out, np.concatenate(expected))


def test_atomics() -> None:
    word, out = np.array([40], np.int64), np.zeros(3, np.int64)
    kernel("memory.atomics", "pp")(word, out)
    assert out.tolist() == [40, 45, 43] and word[0] == 77


# ---- 16 rows at once


@pytest.mark.parametrize("last", [15, 14, 7, 0])
@pytest.mark.parametrize("keep", [16, 8])
def test_transposer(keep: int, last: int) -> None:
    stride = 68
    src = at_the_end(last * stride + 64)
    src[:] = np.random.default_rng(12).integers(0, 256, len(src)).astype(np.uint8)
    rows = np.stack([src[stride * min(i, last) :][:64].view(np.uint32) for i in range(16)])
    out = np.full((17, 16), 7, np.uint32)
    kernel("tiles.transposed", "piip", keep)(src, stride, last, out)
    same(out[:keep], np.ascontiguousarray(rows.T[:keep]))
    assert (out[keep:] == 7).all()


@pytest.mark.parametrize("stride", [54, 68])
def test_columns_of_16_rows(stride: int) -> None:
    """Whose last byte may be the last one that there is."""
    from primitive_kernels.tiles import BITS, BYTES, HALVES_AT, LEVELS, NIBBLES

    src = at_the_end(15 * stride + BYTES + 32)
    src[:] = np.random.default_rng(15).integers(0, 256, len(src)).astype(np.uint8)
    rows = np.stack([src[stride * i :][: BYTES + 32] for i in range(16)])
    out = poisoned(2880)
    assert HALVES_AT[-1] == BYTES + 30
    kernel("tiles.of_16_rows", "pip")(src, stride, out)

    def turned(q: Array) -> Array:
        """(16, 32) -> word j of every row, for j from 0 to 7."""
        return np.ascontiguousarray(q.reshape(16, 8, 4).transpose(1, 0, 2)).reshape(-1)

    packed = rows[:, NIBBLES : NIBBLES + 16]
    nibbles = np.concatenate([packed & 15, packed >> 4], 1)
    bits = np.unpackbits(rows[:, BITS : BITS + 4], axis=1, bitorder="little") * np.uint8(16)
    whole = np.ascontiguousarray(rows[:, BYTES:])
    form = whole ^ np.uint8(128 if jit.level() == "vnni" else 0)
    parts = (nibbles, np.array(LEVELS, np.int8).view(np.uint8)[nibbles], nibbles | bits, whole, form)
    for i, part in enumerate(parts):
        same(out[512 * i :][:512], turned(part), f"part {i}")
    for i, at in enumerate(HALVES_AT):
        halves = np.ascontiguousarray(rows[:, at : at + 2]).view(np.float16)[:, 0].astype(F32)
        found = np.ascontiguousarray(out[2560 + 64 * i :][:64]).view(F32)
        assert np.array_equal(found, halves, equal_nan=True), i


def test_parts_of_16_rows() -> None:
    from primitive_kernels.tiles import HALVES, LEVELS, NUMBERS, PARTS

    stride = 54
    src = at_the_end(15 * stride + 38)
    src[:] = np.random.default_rng(17).integers(0, 256, len(src)).astype(np.uint8)
    rows = [np.ascontiguousarray(src[stride * i :][:38]) for i in range(16)]
    out = poisoned(512)
    kernel("tiles.parts_of_16_rows", "pip")(src, stride, out)

    def word(row: Array, at: int, number: int) -> int:
        return int(row[at + 4 * number :][:4].view(np.uint32)[0])

    def column(parts: list[tuple[int, int, int, int, int]]) -> Array:
        """u8 (16, 4)"""
        found = np.zeros((16, 4), np.uint8)
        for at, number, right, keep, left in parts:
            moved = np.array([word(row, at, number) >> right for row in rows], np.uint32)
            found |= (moved.view(np.uint8).reshape(16, 4) & np.uint8(keep)) << np.uint8(left)
        return found

    first, second = map(column, PARTS)
    found = np.array(LEVELS, np.int8).view(np.uint8)[first]
    form = found ^ np.uint8(128 if jit.level() == "vnni" else 0)
    for i, part in enumerate((first, second, found, form)):
        same(out[64 * i :][:64], part.reshape(-1), f"column {i}")
    for i, (parts, which) in enumerate(NUMBERS):
        at, number, right, sign = HALVES[which]
        for r, row in enumerate(rows):
            n = 0
            for part_at, part_word, down, keep, left in parts:
                n |= (word(row, part_at, part_word) >> down & keep) << left
            half = np.uint16(word(row, at, number) >> right & 0xFFFF).view(np.float16).astype(F32)
            expected = F32((n ^ 128) - 128) * (half * F32(sign))
            actual = out[256 + 64 * i + 4 * r :][:4].view(F32)[0]
            assert actual == expected or (np.isnan(actual) and np.isnan(expected)), (i, r)


def test_a_tile_of_the_first_of_a_panel() -> None:
    from primitive_kernels.tiles import WIDTH

    rng = np.random.default_rng(16)
    w, scale = rng.normal(size=16).astype(F32), rng.normal(size=WIDTH).astype(F32)
    q, s = rng.integers(0, 32, (4, 64)).astype(np.uint8), rng.integers(-127, 128, (4, WIDTH, 4)).astype(np.int8)
    starts = rng.integers(-100, 100, WIDTH).astype(np.int32)
    out = poisoned(1024 + 64)
    kernel("tiles.first_of_a_panel", "pppp")(
        w, q, np.concatenate([a.ravel().view(np.uint8) for a in (scale, starts, s)]), out
    )
    sums = sum(np.stack([four_products(q[i], np.tile(c, 16))[0] for c in s[i, :2]]).astype(np.int64) for i in range(4))
    same(out[:128].view(F32).reshape(2, 16), (sums + starts[:2, None] * 128).astype(F32))
    same(out[128:256].view(F32).reshape(2, 16), w * scale[:2, None])
    assert (out[256:1024] == POISON).all()


@pytest.mark.parametrize("extreme", [False, True])
def test_columns_of_a_tile(extreme: bool) -> None:
    from primitive_kernels.tiles import WIDTH

    rng = np.random.default_rng(13)
    w = rng.normal(size=16).astype(F32)
    q5, q6, q7 = (rng.integers(n if extreme else 0, n + 1, (4, 64)).astype(np.uint8) for n in (31, 63, 127))
    q8 = rng.integers(-128, -127 if extreme else 128, (4, 64)).astype(np.int8)
    scale = rng.normal(size=WIDTH).astype(F32)
    starts = rng.integers(-100, 100, WIDTH).astype(np.int32)
    s = rng.integers(127 if extreme else -127, 128, (4, WIDTH, 4)).astype(np.int8)
    s[:, 1] *= -1
    f = rng.normal(size=(WIDTH, 16)).astype(F32)
    y = np.concatenate([a.ravel().view(np.uint8) for a in (scale, starts, s, f)])
    out = poisoned(8192 + 64)
    sums = [
        sum(np.stack([four_products(q[i], np.tile(c, 16))[0] for c in s[i]]).astype(np.int64) for i in range(4))
        for q in (q5, q6, q8, q7)
    ]
    kernel("tiles.columns", "pppppip")(w, q5, np.concatenate([q6, q7]), q8, y, 11, out)
    one, two, three, four, five, six = (out[1024 * i :][: 64 * WIDTH].view(F32).reshape(WIDTH, 16) for i in range(6))
    same(one, (sums[0] + starts[:, None] * 128).astype(F32), "5 bits")
    same(two, sums[1].astype(F32), "6 bits")
    same(six, sums[3].astype(F32), "7 bits")
    bias = 128 * s.astype(np.int64).sum(axis=(0, 2))[:, None] if jit.level() == "vnni" else 0
    same(three, (sums[2] + bias).astype(F32) * (w * scale[:, None]) + F32(0), "signed")
    scaled = f * scale[:, None]
    same(four[:2], scaled[:2], "load_scaled")
    assert (four[2].view(np.uint8) == POISON).all(), "columns that are not wanted"
    exact = w.astype(np.float64) * scale[:, None].astype(np.float64) + scaled
    assert np.allclose(five[:, :11], exact[:, :11], rtol=3e-7, atol=1e-7)
    assert (np.ascontiguousarray(five[:, 11:]).view(np.uint8) == POISON).all(), "rows that are not wanted"


@pytest.mark.parametrize(("columns", "rows"), [(1, 8), (3, 4), (4, 4), (4, 1), (2, 2)])
def test_groups_of_columns(columns: int, rows: int) -> None:
    rng = np.random.default_rng(14)
    x = rng.normal(size=(2, 16)).astype(F32)
    y = rng.normal(size=(columns, 3, 16)).astype(F32)  # a column's third row is not for it
    numbers = rng.normal(size=columns).astype(F32)
    numbers[-1] = 0
    out = poisoned(1024 * (1 + columns) + 1024)
    totals = (y[:, :2].astype(np.float64) * x).sum(axis=2)
    expected = np.zeros((columns, rows))
    expected[:, 0] += totals[:, 0]
    expected[:, -1] += totals[:, 1]
    kernel("tiles.groups", "pppip", columns, rows)(x, y, numbers, y.strides[0], out)
    for c in range(columns):
        at = out[64 * c :][:64]
        assert np.allclose(at[: 4 * rows].view(F32), expected[c], rtol=1e-5, atol=1e-5), c
        assert (at[4 * rows :] == POISON).all()
    x[1, 3] = np.nan  # must not reach the column whose number is 0
    kernel("tiles.groups", "pppip", columns, rows)(x, y, numbers, y.strides[0], out)
    for c in range(columns):
        at = out[1024 * (1 + c) :][:1024]
        sums = np.zeros((rows, 16))
        sums[0] += 2.0 * x[0] * numbers[c]
        sums[-1] += x[1] * numbers[c] if numbers[c] else 0.0
        assert np.allclose(at[: 64 * rows].view(F32).reshape(rows, 16), sums, rtol=1e-6, atol=1e-6, equal_nan=True), c
        assert (at[64 * rows :] == POISON).all()
    assert (out[1024 * (1 + columns) :] == POISON).all(), "rows that are not wanted"
