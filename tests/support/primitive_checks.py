"""What tests of primitives of pyggml.simd share: a kernel as a function of arrays, equality to the bit, numbers at edges."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyggml import jit
from pyggml.jit import Spec

Array = NDArray[Any]
F32 = np.float32
POISON = 0xA5


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


def four_products(w: Array, s: Array) -> Array:
    return (w.astype(np.int64) * s.astype(np.int64)).reshape(-1, 16, 4).sum(axis=2)
