"""The searches of `quants/search.py`, compiled: sixteen groups at a time, a group a lane, in the same order of operations.

Of finite values the results are the same to the bit. Owns the machine code and its calling. The arrays are columns as
there: value j of group g at j * n + g, n a whole number of registers; q are kept as f32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

LANES = 16


def _words():
    """-> nearest(x, least, most): to the nearest integer, halves to even, as f32, within the limits."""
    from pyggml import simd as v

    magic, mask, bias = (
        v.constant("f32", [12582912.0] * 16),
        v.constant("i32", [0x7FFFFF] * 16),
        v.constant("i32", [0x400000] * 16),
    )

    @v.device
    def nearest(x, least, most):
        q = v.to_f32((v.f32_bits(x + magic()) & mask()) - bias())
        q = v.where_less(q, least, least, q)
        return v.where_less(most, q, most, q)

    return nearest


def scales_and_minimums():
    """-> kernel(x, weights, q, scale, low, level, n, k, nmax, rmin, steps, absolute); level: k registers of room."""
    from pyggml import simd as v

    U, np = v.U, v.np
    nearest = _words()
    zero, one, never = v.zero_f32, v.constant("f32", [1.0] * 16), v.constant("f32", [float("inf")] * 16)

    @v.device
    def error(q, scale, low, x, w, absolute):
        d = scale * q + low - x
        if absolute:
            return v.absolute(d) * w
        return d * d * w

    def kernel(x, weights, q, scale_out, low_out, level, n, k, nmax, rmin, steps, absolute):
        row = U(4 * n)
        most = v.splat_f32(np.float32(nmax))
        for g in range(0, n, 16):
            here = U(4 * g)
            at, at_w = x + here, weights + here
            value, w = v.load_f32(at), v.load_f32(at_w)
            low, high, sum_w, sum_x = value, value, w, w * value
            for _ in range(1, k):
                at += row
                at_w += row
                value, w = v.load_f32(at), v.load_f32(at_w)
                low, high = v.where_less(value, low, value, low), v.where_less(high, value, value, high)
                sum_w += w
                sum_x += w * value
            low = v.where_less(zero(), low, zero(), low)
            flat = v.where_equal(high, low, one(), zero())
            inverse = most / (high - low)
            scale = one() / inverse
            best = zero()
            at, at_w, at_q = x + here, weights + here, q + here
            for _ in range(k):
                value = v.load_f32(at)
                code = nearest(inverse * (value - low), zero(), most)
                v.store(at_q, code)
                best += error(code, scale, low, value, v.load_f32(at_w), absolute)
                at += row
                at_w += row
                at_q += row
            for i in range(steps + 1):
                step = np.float32(rmin + np.float32(0.1) * np.float32(i)) + np.float32(nmax)
                by = v.splat_f32(step) / (high - low)
                sum_l, sum_l2, sum_xl = zero(), zero(), zero()
                at, at_w, at_l = x + here, weights + here, level
                for _ in range(k):
                    value = v.load_f32(at)
                    code = nearest(by * (value - low), zero(), most)
                    v.store(at_l, code)
                    wl = v.load_f32(at_w) * code
                    sum_l += wl
                    sum_l2 += wl * code
                    sum_xl += wl * value
                    at += row
                    at_w += row
                    at_l += U(64)
                determinant = sum_w * sum_l2 - sum_l * sum_l
                this_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
                this_low = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
                this_scale = v.where_less(zero(), this_low, sum_xl / sum_l2, this_scale)
                this_low = v.where_less(zero(), this_low, zero(), this_low)
                now = zero()
                at, at_w, at_l = x + here, weights + here, level
                for _ in range(k):
                    now += error(v.load_f32(at_l), this_scale, this_low, v.load_f32(at), v.load_f32(at_w), absolute)
                    at += row
                    at_w += row
                    at_l += U(64)
                now = v.where_less(zero(), determinant, now, never())
                now = v.where_equal(flat, one(), never(), now)
                at_q, at_l = q + here, level
                for _ in range(k):
                    v.store(at_q, v.where_less(now, best, v.load_f32(at_l), v.load_f32(at_q)))
                    at_q += row
                    at_l += U(64)
                scale = v.where_less(now, best, this_scale, scale)
                low = v.where_less(now, best, this_low, low)
                best = v.where_less(now, best, now, best)
            v.store(scale_out + here, scale)
            v.store(low_out + here, low)

    return kernel


def _largest():
    """-> f(x, row, k): in each lane the first value of largest magnitude, and that magnitude."""
    from pyggml import simd as v

    @v.device
    def largest(at, row, k):
        found, magnitude = v.zero_f32(), v.zero_f32()
        for _ in range(k):
            value = v.load_f32(at)
            size = v.absolute(value)
            found = v.where_less(magnitude, size, value, found)
            magnitude = v.where_less(magnitude, size, size, magnitude)
            at += row
        return found, magnitude

    return largest


def scales():
    """-> kernel(x, q, scale, magnitude, level, n, k, nmax)."""
    from pyggml import simd as v

    U, np = v.U, v.np
    nearest, largest = _words(), _largest()
    zero, never = v.zero_f32, v.constant("f32", [float("inf")] * 16)

    def kernel(x, q, scale_out, magnitude_out, level, n, k, nmax):
        row = U(4 * n)
        least, most = v.splat_f32(np.float32(-nmax)), v.splat_f32(np.float32(nmax - 1))
        for g in range(0, n, 16):
            here = U(4 * g)
            extreme, magnitude = largest(x + here, row, k)
            scale, best = zero(), zero()
            for turn in range(19):
                i = turn - 10 if turn < 10 else turn - 9  # 0 first, then -9 to -1 and 1 to 9
                if turn == 0:
                    i = 0
                by = v.splat_f32(-(np.float32(nmax) + np.float32(0.1) * np.float32(i))) / extreme
                sumlx, suml2 = zero(), zero()
                at, at_l = x + here, level
                for _ in range(k):
                    value = v.load_f32(at)
                    code = nearest(by * value, least, most)
                    v.store(at_l, code)
                    w = value * value
                    sumlx += w * value * code
                    suml2 += w * code * code
                    at += row
                    at_l += U(64)
                at_q, at_l = q + here, level
                if turn == 0:
                    for _ in range(k):
                        v.store(at_q, v.load_f32(at_l))
                        at_q += row
                        at_l += U(64)
                    scale = v.where_equal(suml2, zero(), zero(), sumlx / suml2)
                    best = scale * sumlx
                else:
                    bound = v.where_less(zero(), suml2, best * suml2, never())
                    now = sumlx * sumlx
                    for _ in range(k):
                        v.store(at_q, v.where_less(bound, now, v.load_f32(at_l), v.load_f32(at_q)))
                        at_q += row
                        at_l += U(64)
                    scale = v.where_less(bound, now, sumlx / suml2, scale)
                    best = v.where_less(bound, now, scale * sumlx, best)
            v.store(scale_out + here, scale)
            v.store(magnitude_out + here, magnitude)

    return kernel


def scales_by_refinement():
    """-> kernel(x, q, sumlx, suml2, magnitude, n, k, nmax)."""
    from pyggml import simd as v

    U, np = v.U, v.np
    nearest, largest = _words(), _largest()
    zero, never = v.zero_f32, v.constant("f32", [float("inf")] * 16)

    def kernel(x, q, sumlx_out, suml2_out, magnitude_out, n, k, nmax):
        row = U(4 * n)
        least, most = v.splat_f32(np.float32(-nmax)), v.splat_f32(np.float32(nmax - 1))
        for g in range(0, n, 16):
            here = U(4 * g)
            extreme, magnitude = largest(x + here, row, k)
            by = least / extreme
            sumlx, suml2 = zero(), zero()
            at, at_q = x + here, q + here
            for _ in range(k):
                value = v.load_f32(at)
                code = nearest(by * value, least, most)
                v.store(at_q, code)
                w = value * value
                sumlx += w * value * code
                suml2 += w * code * code
                at += row
                at_q += row
            for _ in range(5):
                at, at_q = x + here, q + here
                for _ in range(k):
                    value, code = v.load_f32(at), v.load_f32(at_q)
                    w = value * value
                    wx = w * value
                    slx, sl2 = sumlx - wx * code, suml2 - w * code * code
                    new = nearest(value * sl2 / slx, least, most)
                    with_lx, with_l2 = slx + wx * new, sl2 + w * new * new
                    bound = v.where_less(zero(), slx, sumlx * sumlx * with_l2, never())
                    bound = v.where_less(zero(), with_l2, bound, never())
                    bound = v.where_equal(new, code, never(), bound)
                    gain = with_lx * with_lx * suml2
                    v.store(at_q, v.where_less(bound, gain, new, code))
                    sumlx, suml2 = v.where_less(bound, gain, with_lx, sumlx), v.where_less(bound, gain, with_l2, suml2)
                    at += row
                    at_q += row
            v.store(sumlx_out + here, sumlx)
            v.store(suml2_out + here, suml2)
            v.store(magnitude_out + here, magnitude)

    return kernel


SIGNATURES = {
    "scales_and_minimums": "void(u64,u64,u64,u64,u64,u64,i64,i64,i64,f32,i64,i64)",
    "scales": "void(u64,u64,u64,u64,u64,i64,i64,i64)",
    "scales_by_refinement": "void(u64,u64,u64,u64,u64,i64,i64,i64)",
}


@functools.cache
def searches() -> Any:
    """The compiled ones, as `quants.search.Searches`."""
    from pyggml import jit
    from pyggml.quants.base import Searches
    from pyggml.quants.search import TINY

    specs = {name: jit.Spec("search", name, (), signature) for name, signature in SIGNATURES.items()}
    jit.ensure(specs.values())
    call: dict[str, Callable[..., None]] = {name: jit.function(spec) for name, spec in specs.items()}

    def whole(x: Any) -> Any:
        """With groups of zeros to an odd number of registers: rows a power of two apart share the cache's few lines."""
        registers = -(-x.shape[1] // LANES) | 1
        wide = np.zeros((x.shape[0], registers * LANES), np.float32)
        wide[:, : x.shape[1]] = x
        return wide

    def rooms(n: int, *shapes: int) -> list[Any]:
        return [np.empty((k, n), np.float32) for k in shapes]

    def run(name: str, arrays: list[Any], *numbers: float) -> None:
        call[name](*(array.ctypes.data for array in arrays), *numbers)

    def by_minimums(x, weights, nmax, rmin, rdelta, steps, *, absolute):
        assert rdelta == 0.1
        k, n = x.shape
        a, w = whole(x), whole(weights)
        q, scale, low, level = rooms(a.shape[1], k, 1, 1, LANES * k // a.shape[1] + 1)
        run("scales_and_minimums", [a, w, q, scale, low, level], a.shape[1], k, nmax, rmin, steps, int(absolute))
        flat = np.where(a.min(axis=0) > 0, np.float32(0), a.min(axis=0)) == a.max(axis=0)
        q[:, flat] = 0
        scale = np.where(flat, np.float32(0), scale[0])
        return scale[:n], -low[0, :n], q[:, :n].astype(np.int32)

    def symmetric(x, nmax):
        k, n = x.shape
        a = whole(x)
        q, scale, magnitude, level = rooms(a.shape[1], k, 1, 1, LANES * k // a.shape[1] + 1)
        run("scales", [a, q, scale, magnitude, level], a.shape[1], k, nmax)
        zero = magnitude[0] < TINY
        q += np.float32(nmax)
        q[:, zero] = 0
        return np.where(zero, np.float32(0), scale[0])[:n], q[:, :n].astype(np.int32)

    def refined(x, nmax):
        k, n = x.shape
        a = whole(x)
        q, sumlx, suml2, magnitude = rooms(a.shape[1], k, 1, 1, 1)
        run("scales_by_refinement", [a, q, sumlx, suml2, magnitude], a.shape[1], k, nmax)
        zero = magnitude[0] < TINY
        q += np.float32(nmax)
        q[:, zero] = 0
        scale = np.where(zero | ~(suml2[0] > 0), np.float32(0), sumlx[0] / suml2[0])
        return scale[:n], q[:, :n].astype(np.int32)

    return Searches(by_minimums, symmetric, refined)
