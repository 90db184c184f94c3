"""SCALE, UNARY, SQR SQRT LOG SIN COS, CLAMP, LEAKY_RELU."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import DENSE_ROWS, F16, F32, FLOATS, ROUNDING, Case, Operands, layouts, operands, shapes
from op_check import assert_caught, check, mutant_of, run

from pyggml import ops
from pyggml.backend.base import Device
from pyggml.backend.reference.unary import PLAIN, refuse
from pyggml.backend.reference.values import read, source, write
from pyggml.ops import Op, UnaryOp
from pyggml.tensor import Tensor, pack_params

BUILDERS = {Op.SQR: ops.sqr, Op.SQRT: ops.sqrt, Op.LOG: ops.log, Op.SIN: ops.sin, Op.COS: ops.cos}


@st.composite
def scale_cases(draw: Callable) -> Case:
    make = draw(operands())
    dtype = draw(st.sampled_from(FLOATS))
    a = make.like(draw(layouts(dtype, DENSE_ROWS)), dtype, draw(shapes()))
    s, bias = draw(st.sampled_from([(1.0, 0.0), (0.125, 0.0), (-3.5, 2.0), (0.0, 1.0)]))
    return Case(ops.scale(a, s, bias), make.contents, ROUNDING[dtype], atol=1e-6)


def unary_node(a: Tensor, kind: UnaryOp) -> Tensor:
    if kind != UnaryOp.XIELU:
        return ops.unary(a, kind)
    params = pack_params("i4f", kind, 0.8, 0.9, 0.5, -1e-6)  # alpha_n, alpha_p, beta, eps
    node = Tensor(a.type, a.ne, op=Op.UNARY, op_params=params, src=(a,))
    ops.check(node)
    return node


@st.composite
def unary_cases(draw: Callable, kind: UnaryOp) -> Case:
    dtype = draw(st.sampled_from(FLOATS))
    # ggml's table for F16 holds a NaN for GELU of -inf, its F32 code gives 0
    make = draw(operands(specials=False if kind == UnaryOp.GELU and dtype != F32 else None))
    a = make.like(draw(layouts(dtype, DENSE_ROWS)), dtype, draw(shapes()), scale=draw(st.sampled_from([1.0, 6.0])))
    coarse = kind in (UnaryOp.GELU, UnaryOp.GELU_QUICK)  # ggml rounds argument and result to F16
    return Case(
        unary_node(a, kind),
        make.contents,
        ROUNDING[dtype],
        atol=1e-6,
        peer_nmse=1e-5 if coarse else 0.0,
        peer_atol=2e-4 if coarse else 0.0,
    )


@st.composite
def plain_cases(draw: Callable, op: Op) -> Case:
    """Also far from 0: sines and cosines of thousands, logarithms of denormals and of what is huge."""
    make = draw(operands())
    dtype = draw(st.sampled_from((F32, F16)))
    scale = draw(st.sampled_from([1.0, 6.0, 2000.0, 1e6 if dtype == F32 else 60.0]))
    a = make.like(draw(layouts(dtype, DENSE_ROWS)), dtype, draw(shapes()), scale=scale)
    return Case(BUILDERS[op](a), make.contents, ROUNDING[dtype], atol=1e-6)


@st.composite
def clamp_cases(draw: Callable) -> Case:
    make = draw(operands())
    dtype = draw(st.sampled_from((F32, F16)))
    a = make.like(draw(layouts(dtype, DENSE_ROWS)), dtype, draw(shapes()))
    low, high = draw(st.sampled_from([(-0.5, 0.5), (0.0, 1.0), (1.0, -1.0), (-np.inf, np.inf)]))
    return Case(ops.clamp(a, low, high), make.contents, ROUNDING[dtype])


@st.composite
def leaky_relu_cases(draw: Callable) -> Case:
    make = draw(operands())
    dtype = draw(st.sampled_from((F32, F16)))
    a = make.like(draw(layouts(dtype, DENSE_ROWS)), dtype, draw(shapes()))
    return Case(ops.leaky_relu(a, draw(st.sampled_from([0.1, 0.0, -2.0]))), make.contents, ROUNDING[dtype])


@settings(deadline=None, max_examples=30)
@given(case=scale_cases())
def test_scale(device: Device, case: Case) -> None:
    check(case, device)


@pytest.mark.parametrize("kind", list(UnaryOp), ids=lambda kind: kind.name)
def test_unary(device: Device, kind: UnaryOp) -> None:
    @settings(deadline=None, max_examples=15)
    @given(case=unary_cases(kind))
    def attempt(case: Case) -> None:
        check(case, device)

    attempt()


@pytest.mark.parametrize("op", list(BUILDERS), ids=lambda op: op.name)
def test_functions_with_an_op_of_their_own(device: Device, op: Op) -> None:
    @settings(deadline=None, max_examples=25)
    @given(case=plain_cases(op))
    def attempt(case: Case) -> None:
        check(case, device)

    attempt()


def test_sine_and_cosine_at_every_distance(cpu_device: Device) -> None:
    """Within 2e-7 of the exact value of the very F32, around the place where the method changes too."""
    edges = np.float32([0, 0.5, np.pi / 4, np.pi / 2, np.pi, 8191.9, 8192, 8192.1, 1e5, 1e9, 3e38])
    x = np.concatenate([edges, -edges, np.random.default_rng(0).uniform(-8192, 8192, 4000).astype(np.float32)])
    for op, exact in ((Op.SIN, np.sin), (Op.COS, np.cos)):
        make = Operands(np.random.default_rng(0))
        _, values = run(Case(BUILDERS[op](make.leaf(F32, x.shape, x)), make.contents, 0.0), cpu_device)
        assert np.abs(values.reshape(-1) - exact(x.astype(np.float64))).max() < 2e-7, op.name


def test_logarithms_of_all_sizes(cpu_device: Device) -> None:
    x = np.float32(2.0) ** np.arange(-149, 128, dtype=np.float32) * np.float32(1.4)
    make = Operands(np.random.default_rng(0))
    _, values = run(Case(ops.log(make.leaf(F32, x.shape, x)), make.contents, 0.0), cpu_device)
    np.testing.assert_allclose(values.reshape(-1), np.log(x.astype(np.float64)), rtol=2e-7, atol=1e-7)


@settings(deadline=None, max_examples=30)
@given(case=clamp_cases())
def test_clamp(device: Device, case: Case) -> None:
    check(case, device)


@settings(deadline=None, max_examples=30)
@given(case=leaky_relu_cases())
def test_leaky_relu(device: Device, case: Case) -> None:
    check(case, device)


def test_cpu_supports_what_models_need(cpu_device: Device) -> None:
    make = Operands(np.random.default_rng(0))
    a = make.leaf(F32, (576, 3))
    for node in (
        ops.scale(a, 2.0),
        ops.clamp(a, -1.0, 1.0),
        ops.leaky_relu(a, 0.1),
        *(f(a) for f in BUILDERS.values()),
    ):
        assert cpu_device.supports_op(node), Op(node.op).name
    for kind in UnaryOp:
        assert cpu_device.supports_op(ops.unary(a, kind)), kind


def gelu_without_the_tail(node: Tensor) -> None:
    x = read(source(node, 0))
    write(node, 0.5 * x * (1 + np.tanh(0.7978845608 * x)))


def bias_before_scale(node: Tensor) -> None:
    write(node, (read(source(node, 0)) + node.param_f32(1)) * node.param_f32(0))


def bounds_in_the_other_order(node: Tensor) -> None:
    x, low, high = read(source(node, 0)), node.param_f32(0), node.param_f32(1)
    write(node, np.fmin(np.fmax(x, low), high))


def another_slope(node: Tensor) -> None:
    x = read(source(node, 0))
    write(node, np.where(x > 0, x, x * abs(node.param_f32(0))))


def test_mutants_are_caught() -> None:
    assert_caught(unary_cases(UnaryOp.GELU), mutant_of(Op.UNARY, (refuse, gelu_without_the_tail)))
    assert_caught(scale_cases(), mutant_of(Op.SCALE, (refuse, bias_before_scale)))
    assert_caught(clamp_cases(), mutant_of(Op.CLAMP, (refuse, bounds_in_the_other_order)))
    assert_caught(leaky_relu_cases(), mutant_of(Op.LEAKY_RELU, (refuse, another_slope)))


@pytest.mark.parametrize("op", list(BUILDERS), ids=lambda op: op.name)
def test_another_function_is_caught(op: Op) -> None:
    other = {
        **PLAIN,
        Op.SQR: lambda x: x * np.abs(x),
        Op.LOG: np.log2,
        Op.SIN: np.cos,
        Op.COS: np.sin,
        Op.SQRT: np.cbrt,
    }
    assert_caught(plain_cases(op), mutant_of(op, (refuse, lambda n: write(n, other[op](read(source(n, 0)))))))


def test_rounding_near_halves_and_beyond_fractions(device: Device) -> None:
    """Halves away from 0; what is just below a half to 0; from 2^23 on everything is whole already."""
    values = np.array(
        [0.5, 1.5, 2.5, 0.49999997, 1.4999999, 8388607.5, 8388609.0, 16777215.0, 3e38, np.inf, 0.0], np.float32
    )
    rounded = np.array([1.0, 2.0, 3.0, 0.0, 1.0, 8388608.0, 8388609.0, 16777215.0, 3e38, np.inf, 0.0], np.float32)
    make = Operands(np.random.default_rng(0))
    a = make.leaf(F32, (2 * values.size,), np.concatenate([values, -values]))
    _, got = run(Case(ops.unary(a, UnaryOp.ROUND), make.contents, 0.0), device)
    assert got.reshape(-1).tolist() == np.concatenate([rounded, -rounded]).tolist()
