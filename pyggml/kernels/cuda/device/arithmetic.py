"""Intrinsics for numbers: conversions, 32-bit division, fused multiply-add, dot products of bytes, fast functions.

Owns the spelling of each instruction.
"""

from pyggml.kernels.cuda.device.intrinsic import asm, intrinsic
from pyggml.kernels.cuda.device.memory import BF16_TO_FLOAT, FLOAT_TO_BF16, FLOAT_TO_HALF, HALF_TO_FLOAT

h2f = intrinsic("h2f", "f32", ["i32"], "%v = trunc i32 %a0 to i16\n" + HALF_TO_FLOAT, plain=True)
"""The value of the F16 in the lower half."""
b2f = intrinsic("b2f", "f32", ["i32"], "%v = trunc i32 %a0 to i16\n" + BF16_TO_FLOAT, plain=True)
f2h = intrinsic(
    "f2h", "i32", ["f32"], FLOAT_TO_HALF.replace("{n}", "0") + "\n%r = zext i16 %v to i32\nret i32 %r", plain=True
)
f2b = intrinsic(
    "f2b", "i32", ["f32"], FLOAT_TO_BF16.replace("{n}", "0") + "\n%r = zext i16 %v to i32\nret i32 %r", plain=True
)
float_bits = intrinsic("float_bits", "i32", ["f32"], "%r = bitcast float %a0 to i32\nret i32 %r", plain=True)
bits_float = intrinsic("bits_float", "f32", ["i32"], "%r = bitcast i32 %a0 to float\nret float %r", plain=True)

udiv = intrinsic("udiv", "i32", ["i32", "i32"], "%r = udiv i32 %a0, %a1\nret i32 %r", plain=True)
"""Quotient of numbers that are not negative; Python's own // takes twice as many instructions."""
urem = intrinsic("urem", "i32", ["i32", "i32"], "%r = urem i32 %a0, %a1\nret i32 %r", plain=True)
shr = intrinsic("shr", "i32", ["i32", "i32"], "%r = lshr i32 %a0, %a1\nret i32 %r", plain=True)
"""Bits moved down by 0 to 31, zeros from above: one instruction, where Python's >> on an i64 takes two and more."""
funnel = intrinsic(
    "funnel", "i32", ["i32", "i32", "i32"],
    asm("shf.r.wrap.b32 $0, $1, $2, $3;", "=r,r,r,r", "i32", "i32 %a0, i32 %a1, i32 %a2", pure=True),
)  # fmt: skip
"""32 bits from bit n (0 to 31) of the pair low, high."""
once = intrinsic("once", "i32", ["i32"], asm("mov.b32 $0, $1;", "=r,r", "i32", "i32 %a0"))
"""The same number, which is not computed anew in a loop from what it was made of."""
permute = intrinsic(
    "permute", "i32", ["i32", "i32", "i32"],
    asm("prmt.b32 $0, $1, $2, $3;", "=r,r,r,r", "i32", "i32 %a0, i32 %a1, i32 %a2", pure=True),
)  # fmt: skip
"""Four bytes out of the eight of (a, b); each nibble of the third says which (its top bit must be 0)."""

dp4a = intrinsic(
    "dp4a", "i32", ["i32", "i32", "i32"],
    asm("dp4a.s32.s32 $0, $1, $2, $3;", "=r,r,r,r", "i32", "i32 %a0, i32 %a1, i32 %a2", pure=True),
)  # fmt: skip
"""c + the dot product of four signed bytes with four."""

fma = intrinsic(
    "fma", "f32", ["f32", "f32", "f32"],
    "%r = call float @llvm.fma.f32(float %a0, float %a1, float %a2)\nret float %r",
    plain=True, needs=("declare float @llvm.fma.f32(float, float, float)",),
)  # fmt: skip
mul_rn = intrinsic(
    "mul_rn", "f32", ["f32", "f32"],
    "%r = call float @llvm.nvvm.mul.rn.f(float %a0, float %a1)\nret float %r",
    needs=("declare float @llvm.nvvm.mul.rn.f(float, float)",),
)  # fmt: skip
"""A product that is rounded by itself, whatever is added to it."""
fmaximum = intrinsic(
    "fmaximum", "f32", ["f32", "f32"],
    "%g = fcmp ogt float %a0, %a1\n%n = fcmp uno float %a1, 0.0\n%t = or i1 %g, %n\n"
    "%r = select i1 %t, float %a0, float %a1\nret float %r",
    plain=True,
)  # fmt: skip
"""The larger one; of a NaN and a number the number."""

round_i32 = intrinsic(
    "round_i32", "i32", ["f32"], asm("cvt.rni.s32.f32 $0, $1;", "=r,f", "i32", "float %a0", pure=True)
)  # fmt: skip
"""The nearest integer, of two the even one; beyond the range the largest or smallest, NaN is 0."""
truncate_i32 = intrinsic(
    "truncate_i32", "i32", ["f32"], asm("cvt.rzi.s32.f32 $0, $1;", "=r,f", "i32", "float %a0", pure=True)
)  # fmt: skip
round_down = intrinsic(
    "round_down", "f32", ["f32"], asm("cvt.rmi.f32.f32 $0, $1;", "=f,f", "float", "float %a0", pure=True)
)  # fmt: skip
sign_of = intrinsic(
    "sign_of", "f32", ["f32", "f32"],
    "%x = bitcast float %a0 to i32\n%s = bitcast float %a1 to i32\n%m = and i32 %x, 2147483647\n"
    "%n = and i32 %s, -2147483648\n%b = or i32 %m, %n\n%r = bitcast i32 %b to float\nret float %r",
    plain=True,
)  # fmt: skip
"""The first with the sign of the second."""
ex2 = intrinsic("ex2", "f32", ["f32"], asm("ex2.approx.f32 $0, $1;", "=f,f", "float", "float %a0", pure=True))
"""2 to the x, relative error 2^-22."""
rcp = intrinsic("rcp", "f32", ["f32"], asm("rcp.approx.f32 $0, $1;", "=f,f", "float", "float %a0", pure=True))
"""1 / x, 1 ulp."""
sin_turn = intrinsic("sin_turn", "f32", ["f32"], asm("sin.approx.f32 $0, $1;", "=f,f", "float", "float %a0", pure=True))
"""sin of an angle between -pi and pi, absolute error 2^-20."""
cos_turn = intrinsic("cos_turn", "f32", ["f32"], asm("cos.approx.f32 $0, $1;", "=f,f", "float", "float %a0", pure=True))
pack_f16 = intrinsic(
    "pack_f16", "i32", ["f32", "f32"],
    asm("cvt.rn.f16x2.f32 $0, $2, $1;", "=r,f,f", "i32", "float %a0, float %a1", pure=True),
)  # fmt: skip
"""Two F16 in a register, the first in the lower half. Compute capability 8.0."""
pack_bf16 = intrinsic(
    "pack_bf16", "i32", ["f32", "f32"],
    asm("cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,f,f", "i32", "float %a0, float %a1", pure=True),
)  # fmt: skip
"""Two BF16, likewise."""
