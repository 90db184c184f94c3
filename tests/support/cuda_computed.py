"""What intrinsics of the emulated GPU compute: numbers alone, and products of a warp's matrices. Each is compiled by Numba and
registered under its name by `helper(name, signature)` (cuda_fibers.py).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

SLOTS = 16  # i32 a thread and meeting

Helper = Callable[[str, str], Callable[[Any], Any]]


class Warp(NamedTuple):
    """How lanes see each other's values: `mine()` is where a lane's own slots are, `meet(code, n)` waits for the warp and tells
    where lane 0's are. The rest are addresses: of the slots, the thread's place, the table of halves."""

    ints: Any
    floats: Any
    mine: Any
    meet: Any
    slots: int
    place: int
    half: int


def _casts() -> tuple[Any, Any]:
    """-> (as_float, as_bits): an i32's bits as a float, and back."""
    from llvmlite import ir
    from numba.core import types as nt
    from numba.extending import intrinsic

    @intrinsic
    def as_float(context: Any, bits: Any) -> Any:
        def generate(ctx: Any, builder: Any, sig: Any, args: Any) -> Any:
            return builder.bitcast(args[0], ir.FloatType())

        return nt.float32(nt.int32), generate

    @intrinsic
    def as_bits(context: Any, value: Any) -> Any:
        def generate(ctx: Any, builder: Any, sig: Any, args: Any) -> Any:
            return builder.bitcast(args[0], ir.IntType(32))

        return nt.int32(nt.float32), generate

    return as_float, as_bits


def numbers(numba: Any, helper: Helper) -> None:
    """What needs no other thread."""
    _, as_bits = _casts()

    def brain_bits(x: Any) -> Any:
        bits = np.int64(as_bits(x)) & 0xFFFFFFFF
        if x != x:
            return (bits >> 16) | 64
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) & 0xFFFF

    brain_bits = numba.njit(brain_bits)

    @helper("pack_bf16", "int32(float32,float32)")
    def pack_bf16(a: Any, b: Any) -> Any:
        r = brain_bits(a) | (brain_bits(b) << 16)
        return np.int32(r if r < 2**31 else r - 2**32)

    @helper("dp4a", "int32(int32,int32,int32)")
    def dp4a(a: Any, b: Any, c: Any) -> Any:
        for k in range(4):
            c += np.int32(np.int8((a >> (8 * k)) & 0xFF)) * np.int32(np.int8((b >> (8 * k)) & 0xFF))
        return c

    @helper("round_i32", "int32(float32)")
    def round_i32(x: Any) -> Any:
        if x != x:
            return np.int32(0)
        y = np.rint(np.float64(x))
        return np.int32(min(max(y, -2147483648.0), 2147483647.0))

    @helper("truncate_i32", "int32(float32)")
    def truncate_i32(x: Any) -> Any:
        if x != x:
            return np.int32(0)
        y = np.trunc(np.float64(x))
        return np.int32(min(max(y, -2147483648.0), 2147483647.0))

    @helper("ex2", "float32(float32)")
    def ex2(x: Any) -> Any:
        return np.float32(2.0 ** np.float64(x))

    @helper("sin_turn", "float32(float32)")
    def sin_turn(x: Any) -> Any:
        return np.float32(np.sin(np.float64(x)))

    @helper("cos_turn", "float32(float32)")
    def cos_turn(x: Any) -> Any:
        return np.float32(np.cos(np.float64(x)))

    @helper("permute", "int32(int32,int32,int32)")
    def permute(a: Any, b: Any, which: Any) -> Any:
        r = np.int64(0)
        for k in range(4):
            n = (which >> (4 * k)) & 7
            byte = (a >> (8 * n)) & 0xFF if n < 4 else (b >> (8 * (n - 4))) & 0xFF
            r |= np.int64(byte) << (8 * k)
        return np.int32(r if r < 2**31 else r - 2**32)


def tensor_cores(numba: Any, helper: Helper, warp: Warp) -> None:
    """`mma`: a lane gives its parts of the matrices and takes its part of the result."""
    as_float, _ = _casts()
    ints, floats, mine, meet, a_slots, a_place, a_half = warp
    step = 2 * SLOTS  # from lane to lane

    def signed(word: Any, k: Any) -> Any:
        return np.int32(np.int8((word >> (8 * k)) & 0xFF))

    signed = numba.njit(signed)

    @helper("mma_s8", "void(int64," + "int32," * 9 + "int32)")
    def mma_s8(
        out: Any, a0: Any, a1: Any, a2: Any, a3: Any, b0: Any, b1: Any, c0: Any, c1: Any, c2: Any, c3: Any
    ) -> None:
        s, q, o = ints(a_slots), mine(), ints(out)
        s[q], s[q + 1], s[q + 2], s[q + 3], s[q + 4], s[q + 5] = a0, a1, a2, a3, b0, b1
        base = meet(np.int32(4), np.int32(6))
        lane = ints(a_place)[0] & 31
        o[0], o[1], o[2], o[3] = c0, c1, c2, c3
        for e in range(4):
            row, col = (lane >> 2) + 8 * (e >> 1), (lane & 3) * 2 + (e & 1)
            total = o[e]
            for k in range(32):
                at = (k & 15) >> 2
                a = s[base + ((row & 7) * 4 + at) * step + (row >> 3) + 2 * (k >> 4)]
                b = s[base + (col * 4 + at) * step + 4 + (k >> 4)]
                total += signed(a, k & 3) * signed(b, k & 3)
            o[e] = total

    @helper("mma_s8_k16", "void(int64," + "int32," * 6 + "int32)")
    def mma_s8_k16(out: Any, a0: Any, a1: Any, b0: Any, c0: Any, c1: Any, c2: Any, c3: Any) -> None:
        s, q, o = ints(a_slots), mine(), ints(out)
        s[q], s[q + 1], s[q + 2] = a0, a1, b0
        base = meet(np.int32(5), np.int32(3))
        lane = ints(a_place)[0] & 31
        o[0], o[1], o[2], o[3] = c0, c1, c2, c3
        for e in range(4):
            row, col = (lane >> 2) + 8 * (e >> 1), (lane & 3) * 2 + (e & 1)
            total = o[e]
            for k in range(16):
                a = s[base + ((row & 7) * 4 + (k >> 2)) * step + (row >> 3)]
                b = s[base + (col * 4 + (k >> 2)) * step + 2]
                total += signed(a, k & 3) * signed(b, k & 3)
            o[e] = total

    def half_of(word: Any, k: Any, brain: Any) -> Any:
        bits = (word >> (16 * k)) & 0xFFFF
        return as_float(np.int32(bits << 16)) if brain else floats(a_half)[bits]

    half_of = numba.njit(half_of)

    def mma_half(out: Any, a0: Any, a1: Any, a2: Any, a3: Any, b0: Any, b1: Any, c0: Any, c1: Any, c2: Any, c3: Any,
                 brain: Any) -> None:  # fmt: skip
        s, q, o = ints(a_slots), mine(), floats(out)
        s[q], s[q + 1], s[q + 2], s[q + 3], s[q + 4], s[q + 5] = a0, a1, a2, a3, b0, b1
        base = meet(np.int32(6 + brain), np.int32(6))
        lane = ints(a_place)[0] & 31
        o[0], o[1], o[2], o[3] = c0, c1, c2, c3
        for e in range(4):
            row, col = (lane >> 2) + 8 * (e >> 1), (lane & 3) * 2 + (e & 1)
            total = o[e]
            for k in range(16):
                at = (k & 7) >> 1
                a = s[base + ((row & 7) * 4 + at) * step + (row >> 3) + 2 * (k >> 3)]
                b = s[base + (col * 4 + at) * step + 4 + (k >> 3)]
                total += half_of(a, k & 1, brain) * half_of(b, k & 1, brain)
            o[e] = total

    mma_half = numba.njit(mma_half)
    half_signature = "void(int64," + "int32," * 6 + "float32,float32,float32,float32)"

    @helper("mma_f16", half_signature)
    def mma_f16(
        out: Any, a0: Any, a1: Any, a2: Any, a3: Any, b0: Any, b1: Any, c0: Any, c1: Any, c2: Any, c3: Any
    ) -> None:
        mma_half(out, a0, a1, a2, a3, b0, b1, c0, c1, c2, c3, 0)

    @helper("mma_bf16", half_signature)
    def mma_bf16(
        out: Any, a0: Any, a1: Any, a2: Any, a3: Any, b0: Any, b1: Any, c0: Any, c1: Any, c2: Any, c3: Any
    ) -> None:
        mma_half(out, a0, a1, a2, a3, b0, b1, c0, c1, c2, c3, 1)
