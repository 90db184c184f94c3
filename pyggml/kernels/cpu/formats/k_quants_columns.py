"""K quants and IQ4_XS of 16 rows, transposed: where their q and the numbers of their runs lie, word by word.

Owns the same facts as k_quants.py, for the panels of tile.py. Does not import Numba.
"""

from typing import Any

from pyggml.kernels.cpu.formats.forms import Columns, Part
from pyggml.quants import iq4_nl, iq4_xs, q2_k, q3_k, q4_k, q5_k, q6_k


def _at(module: Any, field: str) -> int:
    at: int = module.LAYOUT.fields[field][1]
    return at


def _bits(at: int, j: int, right: int, keep: int, left: int = 0) -> Part:
    """Of bytes 4 j to 4 j + 3 of those at `at`."""
    return at + 16 * (j // 4), j % 4, right, keep, left


def _byte(at: int, n: int, right: int, keep: int, left: int = 0) -> Part:
    """Bits of byte n of the sixteen at `at`, as a number."""
    return at, n // 4, 8 * (n % 4) + right, keep, left


def _half(at: int, sign: float = 1.0, run: int | None = None) -> tuple[int, int, int, float]:
    """The f16 at `at`, read with the sixteen bytes at `run`."""
    run = at if run is None else run
    return run, (at - run) // 4, 8 * ((at - run) % 4), sign


def _q4_k() -> Columns:
    qs = _at(q4_k, "qs")
    q = [[_bits(qs + 32 * i, j, low, 15)] for i in range(4) for low in (0, 4) for j in range(8)]
    return Columns(q, _six_bits(), [_half(0), _half(2, -1.0, 0)])


def _six_bits() -> list[tuple[list[Part], int]]:
    """The scales and minimums of Q4_K and Q5_K: bytes 4 to 15."""
    numbers = []
    for i in range(8):
        for which in (0, 1):
            first = 4 + 4 * which + i % 4
            parts = [_byte(0, first, 0, 63)]
            if i >= 4:
                parts = [_byte(0, 12 + i % 4, 4 * which, 15), _byte(0, first, 6, 3, 4)]
            numbers.append((parts, which))
    return numbers


def _q5_k() -> Columns:
    qs, qh = _at(q5_k, "qs"), _at(q5_k, "qh")
    q = [
        [_bits(qs + 32 * i, j, 4 * low, 15), _bits(qh, j, 2 * i + low, 1, 4)]
        for i in range(4) for low in (0, 1) for j in range(8)
    ]  # fmt: skip
    return Columns(q, _six_bits(), [_half(0), _half(2, -1.0, 0)])


def _q2_k() -> Columns:
    qs, scales, d = _at(q2_k, "qs"), _at(q2_k, "scales"), _at(q2_k, "d")
    q = [[_bits(qs + 32 * half, j, 2 * p, 3)] for half in (0, 1) for p in range(4) for j in range(8)]
    numbers = [([_byte(scales, i, 4 * which, 15)], which) for i in range(16) for which in (0, 1)]
    return Columns(q, numbers, [_half(d, 1.0, d - 12), _half(d + 2, -1.0, d - 12)])


def _q3_k() -> Columns:
    qs, mask, d = _at(q3_k, "qs"), _at(q3_k, "hmask"), _at(q3_k, "d")
    q = [
        [_bits(qs + 32 * half, j, 2 * p, 3), _bits(mask, j, 4 * half + p, 1, 2)]
        for half in (0, 1) for p in range(4) for j in range(8)
    ]  # fmt: skip
    end, first = d - 14, _at(q3_k, "scales") - (d - 14)
    numbers = [
        ([_byte(end, first + i % 8, 4 * (i // 8), 15), _byte(end, first + 8 + i % 4, 2 * (i // 4), 3, 4)], 0)
        for i in range(16)
    ]
    return Columns(q, numbers, [_half(d, 1.0, end)], less=32)


def _q6_k() -> Columns:
    ql, qh, scales, d = (_at(q6_k, field) for field in ("ql", "qh", "scales", "d"))
    q = [
        [_bits(ql + 64 * half + 32 * (p % 2), j, 4 * (p // 2), 15), _bits(qh + 32 * half, j, 2 * p, 3, 4)]
        for half in (0, 1) for p in range(4) for j in range(8)
    ]  # fmt: skip
    numbers = [([_byte(scales, i, 0, 255)], 0) for i in range(16)]
    return Columns(q, numbers, [_half(d, 1.0, d - 14)], flip=128, less=128)


def _iq4_xs() -> Columns:
    qs, low, high = _at(iq4_xs, "qs"), _at(iq4_xs, "scales_l"), _at(iq4_xs, "scales_h")
    q = [[_bits(qs + 16 * i, j, right, 15)] for i in range(8) for right in (0, 4) for j in range(4)]
    numbers = [
        ([_byte(0, low + i // 2, 4 * (i % 2), 15), _byte(0, high + i // 4, 2 * (i % 4), 3, 4)], 0) for i in range(8)
    ]
    return Columns(q, numbers, [_half(_at(iq4_xs, "d"), 1.0, 0)], less=32, levels=iq4_nl.LEVELS)


COLUMNS = {"Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k, "IQ4_XS": _iq4_xs}
