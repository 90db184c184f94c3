"""Functions of f32 lanes that are approximated: exponentials and hyperbolic tangent. Each says how well."""

import numpy as np

from pyggml.jit import device
from pyggml.simd.arithmetic import (
    absolute,
    bits_f32,
    fma,
    maximum,
    minimum,
    round_even,
    truncate_to_i32,
    where_less,
    where_nan,
)
from pyggml.simd.lanes import splat_f32, splat_i32


@device
def exp(x):
    """e^x of f32 lanes, within 3 ulp; below -104 it is 0, above 88.7 infinity, NaN stays NaN.

    x = n ln2 + r with |r| <= ln2/2; e^r by its Taylor polynomial to the 6th power; 2^n in two halves, so that results
    among the denormals round once.
    """
    big = maximum(minimum(x, splat_f32(np.float32(89.0))), splat_f32(np.float32(-105.0)))
    n = round_even(big * splat_f32(np.float32(1.4426950408889634)))
    r = fma(n, splat_f32(np.float32(-0.693359375)), big)
    r = fma(n, splat_f32(np.float32(2.12194440e-4)), r)
    p = splat_f32(np.float32(1.0 / 720.0))
    p = fma(p, r, splat_f32(np.float32(1.0 / 120.0)))
    p = fma(p, r, splat_f32(np.float32(1.0 / 24.0)))
    p = fma(p, r, splat_f32(np.float32(1.0 / 6.0)))
    p = fma(p, r, splat_f32(np.float32(0.5)))
    p = fma(p, r, splat_f32(np.float32(1.0)))
    p = fma(p, r, splat_f32(np.float32(1.0)))
    return where_nan(x, _times_power_of_two(p, truncate_to_i32(n)))


@device
def exp2(x):
    """2^x of f32 lanes, within 3 ulp; exact for whole x."""
    whole = round_even(maximum(minimum(x, splat_f32(np.float32(129.0))), splat_f32(np.float32(-151.0))))
    return _times_power_of_two(exp((x - whole) * splat_f32(np.float32(0.6931471805599453))), truncate_to_i32(whole))


@device
def _times_power_of_two(y, whole):
    """y * 2^whole for i32 lanes from -151 to 129: in two factors, each of which f32 can hold."""
    low = whole >> splat_i32(np.int32(1))
    bias, shift = splat_i32(np.int32(127)), splat_i32(np.int32(23))
    return y * bits_f32((low + bias) << shift) * bits_f32((whole - low + bias) << shift)


@device
def tanh(x):
    """tanh of f32 lanes, within about 4 ulp: its series near 0, (1 - e^-2|x|) / (1 + e^-2|x|) elsewhere."""
    one = splat_f32(np.float32(1.0))
    size = absolute(x)
    t = exp(size * splat_f32(np.float32(-2.0)))
    far = (one - t) / (one + t)
    s = x * x
    p = splat_f32(np.float32(-1382.0 / 155925.0))
    p = fma(p, s, splat_f32(np.float32(62.0 / 2835.0)))
    p = fma(p, s, splat_f32(np.float32(-17.0 / 315.0)))
    p = fma(p, s, splat_f32(np.float32(2.0 / 15.0)))
    p = fma(p, s, splat_f32(np.float32(-1.0 / 3.0)))
    near = fma(p * s, size, size)
    y = where_less(size, splat_f32(np.float32(0.3)), near, far)
    return where_nan(x, where_less(x, splat_f32(np.float32(0.0)), y * splat_f32(np.float32(-1.0)), y))
