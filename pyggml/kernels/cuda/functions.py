"""Functions of one f32: what UNARY and GLU are made of.

Sources of the formulas: ggml-cpu/vec.h, unary-ops.cpp. exp and division round to nearest; what is small is not made of
differences of large numbers.
"""


def gates():
    """-> silu, gelu, gelu_quick, gelu_erf, sigmoid."""
    import math

    from pyggml.kernels.cuda import device as d

    @d.inline
    def sigmoid(x):
        return d.f32(1) / (d.f32(1) + math.exp(-x))

    @d.inline
    def silu(x):
        return x / (d.f32(1) + math.exp(-x))

    @d.inline
    def gelu(x):
        """The tanh approximation, 0.5 x (1 + tanh u) = x sigmoid(2 u); exactly 0 from -10 down."""
        if x <= d.f32(-10):
            return d.f32(0)
        u = d.f32(1.5957691216057308) * x * (d.f32(1) + d.f32(0.044715) * x * x)
        return x / (d.f32(1) + math.exp(-u))

    @d.inline
    def gelu_quick(x):
        return x / (d.f32(1) + math.exp(d.f32(-1.702) * x))

    @d.inline
    def gelu_erf(x):
        return d.f32(0.5) * x * math.erfc(d.f32(-0.7071067811865476) * x)

    return silu, gelu, gelu_quick, gelu_erf, sigmoid
