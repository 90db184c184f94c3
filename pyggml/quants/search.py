"""The searches for scales that quantise a group of values with the least error, in ggml's float32 order.

Each follows its namesake in ggml-quants.c operation by operation: values stand in columns here, (k, groups), so that
one NumPy operation does for all groups what C does for one value, and sums are added in C's order.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from pyggml.quants.base import Bytes, Floats, Ints, Records, Searches

TINY = np.float32(1e-15)  # GROUP_MAX_EPS: a group whose values are all smaller is zero
BATCH = 1 << 16  # values at a time: what one step reads and writes stays in the cache


def in_batches(quantize: Callable[..., Records]) -> Callable[..., Records]:
    """The same function of blocks, called for a few of them at a time."""

    def whole(values: Floats, *search: Any) -> Records:
        n = BATCH // values.shape[1]
        return np.concatenate([quantize(values[i : i + n], *search) for i in range(0, max(len(values), 1), n)])

    return whole


def nearest_int(x: Floats) -> Ints:
    """To the nearest, halves to even; where |x| is 2^22 or more, whatever bits C's trick leaves."""
    t = x + np.float32(12582912)  # 1.5 * 2^23: the sum has no bits below 1
    bits: Ints = t.view(np.int32)
    bits &= 0x7FFFFF
    bits -= 0x400000
    return bits


def clipped(x: Floats, least: int, most: int) -> Ints:
    """`nearest_int`, not below `least` nor above `most`."""
    q = nearest_int(x)
    return np.clip(q, least, most, out=q)


def total(terms: Floats) -> Floats:
    """(k, n) -> (n,): the sum of each column from its first row to its last."""
    acc = np.zeros(terms.shape[1], np.float32)
    for row in terms:
        acc += row
    return acc


def largest(x: Floats) -> tuple[Floats, Floats]:
    """(k, n) -> (n,), (n,): the first value of largest magnitude in each column, and that magnitude. NaNs never win."""
    found, magnitude = np.zeros(x.shape[1], np.float32), np.zeros(x.shape[1], np.float32)
    for row in x:
        size = np.abs(row)
        more = size > magnitude
        magnitude = np.where(more, size, magnitude)
        found = np.where(more, row, found)
    return found, magnitude


def greatest(x: Floats) -> Floats:
    """(n, k) -> (n,): the greatest of each row, and +0 if none lies above it. NaNs never win."""
    most: Floats = np.fmax.reduce(x, axis=1, initial=np.float32(0)) + np.float32(0)
    return most


def columns(x: Floats, k: int) -> Floats:
    """(blocks, block size) -> (k, groups of k)."""
    return np.ascontiguousarray(x.reshape(-1, k).T)


def scales_and_minimums(
    x: Floats, weights: Floats, nmax: int, rmin: float, rdelta: float, steps: int, *, absolute: bool
) -> tuple[Floats, Floats, Ints]:
    """make_qkx2_quants: (k, n) -> scale (n,), minimum (n,) with its sign turned, q (k, n) in 0 ... nmax.

    `steps` + 1 widths of a step are tried, each gives weighted least squares; the one with the smallest weighted
    `absolute` (or squared) error is kept. The minimum is never above zero.
    """

    def error(scale: Floats, q: Floats, minimum: Floats) -> Floats:
        diff = scale * q
        diff += minimum
        diff -= x
        if absolute:
            np.abs(diff, out=diff)
        else:
            diff *= diff
        diff *= weights
        return total(diff)

    low, high = x[0].copy(), x[0].copy()
    sum_w = weights[0].copy()
    sum_x = sum_w * x[0]
    wx = weights * x
    for row, w, p in zip(x[1:], weights[1:], wx[1:], strict=True):
        low, high = np.where(row < low, row, low), np.where(row > high, row, high)
        sum_w += w
        sum_x += p
    low = np.where(low > 0, np.float32(0), low)
    flat = high == low
    inverse = np.float32(nmax) / (high - low)
    scale = np.float32(1) / inverse
    best_q = clipped(inverse * (x - low), 0, nmax)
    best = error(scale, best_q.astype(np.float32), low)
    for i in range(steps + 1):
        by = (np.float32(rmin) + np.float32(rdelta) * np.float32(i) + np.float32(nmax)) / (high - low)
        q = clipped(by * (x - low), 0, nmax)
        level = q.astype(np.float32)
        wl = weights * level
        sum_l, sum_l2, sum_xl = total(wl), total(wl * level), total(wl * x)
        determinant = sum_w * sum_l2 - sum_l * sum_l
        this_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
        this_low = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
        above = this_low > 0
        this_low = np.where(above, np.float32(0), this_low)
        this_scale = np.where(above, sum_xl / sum_l2, this_scale)
        now = error(this_scale, level, this_low)
        better = (determinant > 0) & (now < best) & ~flat
        np.copyto(best_q, q, where=better)
        best, scale = np.where(better, now, best), np.where(better, this_scale, scale)
        low = np.where(better, this_low, low)  # the next tries start from it
    best_q[:, flat] = 0
    return np.where(flat, np.float32(0), scale), -low, best_q


def scales(x: Floats, nmax: int) -> tuple[Floats, Ints]:
    """make_qx_quants with weights x^2: (k, n) -> scale (n,), q + nmax (k, n) in 0 ... 2 nmax - 1."""
    extreme, magnitude = largest(x)
    weights = x * x
    wx = weights * x

    def sums(by: Floats) -> tuple[Ints, Floats, Floats]:
        q = clipped(by * x, -nmax, nmax - 1)
        level = q.astype(np.float32)
        return q, total(wx * level), total(weights * level * level)

    best_q, sumlx, suml2 = sums(np.float32(-nmax) / extreme)
    scale = np.where(suml2 != 0, sumlx / suml2, np.float32(0))
    best = scale * sumlx
    for i in [*range(-9, 0), *range(1, 10)]:
        q, sumlx, suml2 = sums(-(np.float32(nmax) + np.float32(0.1) * np.float32(i)) / extreme)
        better = (suml2 > 0) & (sumlx * sumlx > best * suml2)
        np.copyto(best_q, q, where=better)
        scale = np.where(better, sumlx / suml2, scale)
        best = np.where(better, scale * sumlx, best)
    best_q += nmax
    zero = magnitude < TINY
    best_q[:, zero] = 0
    return np.where(zero, np.float32(0), scale), best_q


def scales_by_refinement(x: Floats, nmax: int) -> tuple[Floats, Ints]:
    """make_q3_quants: (k, n) -> scale (n,), q + nmax (k, n). Up to five times each value in turn takes the level that
    fits best beside the others'."""
    extreme, magnitude = largest(x)
    weights = x * x
    wx = weights * x
    q = clipped((np.float32(-nmax) / extreme) * x, -nmax, nmax - 1)
    level = q.astype(np.float32)
    sumlx, suml2 = total(wx * level), total(weights * level * level)
    for _ in range(5):
        changed = False
        for i in range(len(x)):
            slx = sumlx - wx[i] * level[i]
            sl2 = suml2 - weights[i] * level[i] * level[i]
            new = clipped(x[i] * sl2 / slx, -nmax, nmax - 1).astype(np.float32)
            with_lx, with_l2 = slx + wx[i] * new, sl2 + weights[i] * new * new
            better = (slx > 0) & (new != level[i]) & (with_l2 > 0)
            better &= with_lx * with_lx * suml2 > sumlx * sumlx * with_l2
            if better.any():
                changed = True
                level[i] = np.where(better, new, level[i])
                sumlx, suml2 = np.where(better, with_lx, sumlx), np.where(better, with_l2, suml2)
        if not changed:
            break
    q = level.astype(np.int32) + nmax
    zero = magnitude < TINY
    q[:, zero] = 0
    return np.where(zero | ~(suml2 > 0), np.float32(0), sumlx / suml2), q


PLAIN = Searches(scales_and_minimums, scales, scales_by_refinement)


def by_scale(x: Floats, d: Floats, q: Ints, least: int, most: int, minimum: Floats | None = None) -> Bytes:
    """The last step of every K type: (k, n) values over their rounded scales d (n,) -> q - least, u8 (k, n).

    Where d is 0 the q of the search stay.
    """
    shifted = x if minimum is None else x + minimum
    return np.where(d != 0, clipped(shifted / d, least, most) - least, q).astype(np.uint8)
