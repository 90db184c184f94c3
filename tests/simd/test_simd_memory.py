"""Primitives that load and store against NumPy, at each CPU level: they touch nothing beyond what they are asked for."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from guard_page import at_the_end
from levels import OTHERS, run_at
from primitive_checks import F32, POISON, kernel, mixed, poisoned, same

from pyggml.quants.fp4 import E8M0

SUPPORT = Path(__file__).parents[1] / "support"


@pytest.mark.parametrize("level", OTHERS)
def test_at_level(level: str) -> None:
    run_at(level, __file__)


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
from guard_page import at_the_end
from primitive_checks import kernel
import numpy as np
end, out = at_the_end(64), np.zeros(16, np.float32)
read = kernel("memory.whole_at_the_end", "pip")
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


def test_exponents() -> None:
    """Every byte of E8M0, gathered and alone; the last one ends the memory."""
    x, out = at_the_end(7 * 17 + 1), np.zeros(24, F32)
    for first in range(0, 256, 8):
        x[:] = np.arange(first, first + len(x)).astype(np.uint8)
        x[::17] = np.arange(first, first + 8)
        kernel("memory.exponents", "pp")(x, out)
        same(out[:8], E8M0[first : first + 8])
        same(out[8:], E8M0[x[:16]])


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
