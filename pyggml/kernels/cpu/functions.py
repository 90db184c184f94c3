"""Functions of f32 lanes: rounding, exponentials, logarithm, error function, and the activations made of them.

Owns the formulas, shared by unary.py and glu.py; knows no tensor. Imported by factories only (Numba). But for far sines
and cosines none calls a library: polynomials, a few units in the last place. NaN gives NaN unless a docstring says
otherwise.
"""

import math

import numpy as np

from pyggml import simd as v
from pyggml.jit import inline

exp = v.exp


def constant(x):
    """-> f(): x in each lane."""
    return v.constant("f32", [float(np.float32(x))] * 16)


def polynomial(*coefficients):
    """-> f(x): c0 + c1 x + c2 x^2 ..., by Horner's rule."""
    constants = tuple(constant(c) for c in coefficients)
    if len(constants) == 1:
        (last,) = constants

        @inline
        def value(x):
            return last()

        return value
    first, rest = constants[0], polynomial(*coefficients[1:])

    @inline
    def value(x):
        return v.fma(rest(x), x, first())

    return value


zero, one, half, two = constant(0), constant(1), constant(0.5), constant(2)
_no_fraction = constant(2.0**23)

# ---- rounding: the sign stays, so -0.25 becomes -0


@inline
def _whole(a):
    """The integer part of lanes that are not negative; from 2^23 on there is nothing else."""
    small = v.where_less(a, _no_fraction(), a, zero())
    return v.where_less(a, _no_fraction(), v.to_f32(v.truncate_to_i32(small)), a)


@inline
def trunc(x):
    return v.copy_sign(_whole(v.absolute(x)), x)


@inline
def floor(x):
    t = trunc(x)
    return v.copy_sign(v.where_less(x, t, t - one(), t), x)


@inline
def ceil(x):
    t = trunc(x)
    return v.copy_sign(v.where_less(t, x, t + one(), t), x)


@inline
def round_half_away(x):
    a = v.absolute(x)
    whole = _whole(a)
    return v.copy_sign(v.where_less(a - whole, half(), whole, whole + one()), x)


# ---- exponentials and logarithm

_log2e, _ln2_high, _ln2_low = constant(1 / math.log(2)), constant(-0.693359375), constant(2.12194440e-4)
_expm1_tail = polynomial(0.5, 1 / 6, 1 / 24, 1 / 120, 1 / 720, 1 / 5040)
_minus_30, _80, _bias = constant(-30), constant(80), v.constant("i32", [127] * 16)
_mantissa_bits = v.constant("i32", [23] * 16)


@inline
def expm1(x):
    """e^x - 1, near 0 as exact as elsewhere: 2^n (e^r - 1) + (2^n - 1), |r| <= ln2/2."""
    bounded = v.maximum(v.minimum(x, _80()), _minus_30())
    n = v.round_even(bounded * _log2e())
    r = v.fma(n, _ln2_low(), v.fma(n, _ln2_high(), bounded))
    p = v.fma(_expm1_tail(r), r * r, r)
    power = v.bits_f32((v.truncate_to_i32(n) + _bias()) << _mantissa_bits())
    y = v.fma(p, power, power - one())
    return v.where_nan(x, v.where_less(x, _80(), y, exp(x) - one()))


_log_tail = polynomial(2.0, 2 / 3, 2 / 5, 2 / 7, 2 / 9)
_sqrt_half = v.constant("i32", [0x3F3504F3] * 16)
_ln2 = constant(math.log(2))


@inline
def log_normal(x):
    """ln x of positive normal numbers: x = 2^n m, m from sqrt(1/2) to sqrt(2); 2 artanh((m - 1) / (m + 1)) = ln m."""
    bits = v.f32_bits(x) - _sqrt_half()
    n = bits >> _mantissa_bits()
    m = v.bits_f32(v.f32_bits(x) - (n << _mantissa_bits()))
    s = (m - one()) / (m + one())
    return v.fma(v.to_f32(n), _ln2(), s * _log_tail(s * s))


_smallest_normal, _2_to_24, _24 = constant(2.0**-126), constant(2.0**24), constant(24)
_infinity, _minus_infinity, _nan = constant(math.inf), constant(-math.inf), constant(math.nan)


@inline
def log(x):
    """ln x, of denormals too; -inf of 0, NaN of negative numbers."""
    big = v.where_less(x, _smallest_normal(), x * _2_to_24(), x)
    y = log_normal(big) - v.where_less(x, _smallest_normal(), _24() * _ln2(), zero())
    y = v.where_less(x, _infinity(), y, x)  # infinity and NaN are their own logarithms
    y = v.where_equal(x, zero(), _minus_infinity(), y)
    return v.where_less(x, zero(), _nan(), y)


@inline
def log1p(x):
    """ln(1 + x) of numbers from 0 to 1e30: what 1 + x rounds away comes back through the derivative."""
    u = one() + x
    return log_normal(u) + (x - (u - one())) / u


_20 = constant(20)


@inline
def softplus(x):
    """ln(1 + e^x); x itself above 20."""
    y = log1p(exp(v.minimum(x, _20())))
    return v.where_nan(x, v.where_less(_20(), x, x, y))


@inline
def tanh(x):
    """(e^2x - 1) / (e^2x + 1), of |x| so that nothing overflows into inf/inf."""
    a = v.minimum(_20(), v.absolute(x))  # this order keeps NaNs
    e = expm1(a + a)
    return v.copy_sign(e / (e + two()), x)


_erf_near = polynomial(
    1.1283791065216064, -0.3761262595653534, 0.11283594369888306, -0.02685421146452427, 0.005189087241888046,
    -0.000801686430349946, 7.875874871388078e-05,
)  # fmt: skip
_log_erfc = polynomial(
    0.0003201380604878068, -1.1302334070205688, -0.6318260431289673, -0.11008008569478989, 0.026421135291457176,
    -0.004759596195071936, 0.0005968056502752006, -4.605804497259669e-05, 1.6371513993362896e-06,
)  # fmt: skip
_4 = constant(4)


@inline
def erf(x):
    """x P(x^2) up to |x| = 1; beyond it 1 - e^Q(|x|), where Q is ln(1 - erf) from 1 to 4. Both interpolate in Chebyshev
    nodes."""
    a = v.minimum(_4(), v.absolute(x))  # this order keeps NaNs
    near = a * _erf_near(a * a)
    far = one() - exp(_log_erfc(a))
    return v.copy_sign(v.where_less(a, one(), near, far), x)


# ---- sine and cosine

_2_over_pi, _near = constant(2 / math.pi), constant(8192)
_half_pi_high, _half_pi_middle, _half_pi_low = constant(-1.5703125), constant(-4.837512969970703e-4), constant(-7.549789948768648e-8)  # fmt: skip
_sine_tail = polynomial(-1.6666654611e-1, 8.3321608736e-3, -1.9515295891e-4)
_cosine_tail = polynomial(4.166664568298827e-2, -1.388731625493765e-3, 2.443315711809948e-5)
_minus_half = constant(-0.5)
_1, _2, _30 = (v.constant("i32", [i] * 16) for i in (1, 2, 30))
_numbers = v.constant("f32", list(range(16)))


def _circular(quarter, function):
    """-> f(x): the sine of x + `quarter` quarter turns.

    x = n pi/2 + r with pi/2 in three pieces, the first two of which have so few bits that products with n are exact up
    to |x| = 8192; beyond that a lane at a time, `function` in float64.
    """
    turn = v.constant("i32", [quarter] * 16)

    @inline
    def near(x):
        n = v.round_even(x * _2_over_pi())
        r = v.fma(n, _half_pi_low(), v.fma(n, _half_pi_middle(), v.fma(n, _half_pi_high(), x)))
        s = r * r
        sine = v.fma(_sine_tail(s) * s, r, r)
        cosine = v.fma(_cosine_tail(s) * s, s, v.fma(_minus_half(), s, one()))
        q = v.truncate_to_i32(n) + turn()
        y = v.where_equal(v.to_f32(q & _1()), zero(), sine, cosine)
        return v.bits_f32(v.f32_bits(y) ^ ((q & _2()) << _30()))

    @v.device
    def far(x):
        y = zero()
        for i in range(16):
            exact = v.splat_f32(np.float32(function(np.float64(v.lane(x, i)))))
            y = v.where_equal(_numbers(), v.splat_f32(np.float32(i)), exact, y)
        return y

    @v.device
    def value(x):
        if v.hmax(v.where_less(v.absolute(x), _near(), zero(), one())) > np.float32(0):  # so are NaN and infinity
            return far(x)
        return near(x)

    return value


sin, cos = _circular(0, math.sin), _circular(1, math.cos)

# ---- activations (ggml-cpu/vec.h, unary-ops.cpp)


@inline
def sigmoid(x):
    return one() / (one() + exp(v.negative(x)))


@inline
def silu(x):
    return x / (one() + exp(v.negative(x)))


_gelu_inner, _gelu_cubic, _minus_10 = constant(-2 * math.sqrt(2 / math.pi)), constant(0.044715), constant(-10)


@inline
def gelu(x):
    """x (1 + tanh u) / 2 = x / (1 + e^-2u), u = sqrt(2/pi) x (1 + 0.044715 x^2); exactly 0 from -10 down."""
    minus_2u = _gelu_inner() * x * v.fma(_gelu_cubic() * x, x, one())
    y = x / (one() + exp(minus_2u))
    return v.where_nan(x, v.where_less(_minus_10(), x, y, zero()))


_minus_1702 = constant(-1.702)


@inline
def gelu_quick(x):
    return x * (one() / (one() + exp(_minus_1702() * x)))


_sqrt_half_f32 = constant(math.sqrt(0.5))


@inline
def gelu_erf(x):
    return half() * x * (one() + erf(x * _sqrt_half_f32()))


@inline
def sqr(x):
    return x * x


@inline
def relu(x):
    """NaN gives 0."""
    return v.where_less(zero(), x, x, zero())


_3, _6 = constant(3), constant(6)


@inline
def hardsigmoid(x):
    """NaN gives 0: C's fmaxf takes the number."""
    return v.minimum(v.maximum((x + _3()) / _6(), zero()), one())


@inline
def hardswish(x):
    return x * hardsigmoid(x)


@inline
def elu(x):
    return v.where_less(zero(), x, x, expm1(x))


@inline
def sgn(x):
    """NaN gives 0."""
    return v.where_less(zero(), x, one(), v.where_less(x, zero(), v.negative(one()), zero()))


@inline
def step(x):
    """NaN gives 0."""
    return v.where_less(zero(), x, one(), zero())
