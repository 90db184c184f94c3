"""SOFT_MAX: masks, ALiBi, sinks, in place; SOFT_MAX_BACK."""

from collections.abc import Callable

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import F16, F32, Case, Operands, divisors, layouts, operands, shapes
from op_check import assert_caught, check, mutant_of

from pyggml import ops
from pyggml.backend.base import Device
from pyggml.backend.reference.soft_max import refuse, refuse_back, soft_max
from pyggml.backend.reference.values import option, read, source, write
from pyggml.ops import Op
from pyggml.tensor import Tensor


def with_sinks(node: Tensor, sinks: Tensor) -> Tensor:
    mask = node.src[1] if len(node.src) > 1 else None
    made = Tensor(
        node.type, node.ne, node.nb, op=node.op, op_params=node.op_params, src=(node.src[0], mask, sinks),
        view_src=node.view_src, view_offs=node.view_offs,
    )  # fmt: skip
    ops.check(made)
    return made


def mask_values(make: Operands, shape: tuple[int, ...]) -> np.ndarray:
    """0, some numbers, and -inf for about half: here and there a row sees nothing at all."""
    mask = np.where(make.rng.random(shape) < 0.5, -np.inf, make.rng.choice([0.0, -1.0, 0.5], shape))
    if mask.shape[-1]:
        mask[..., 0] = np.where(make.rng.random(shape[:-1]) < 0.95, 0.0, mask[..., 0])
    return mask


@st.composite
def soft_max_cases(draw: Callable) -> Case:
    make = draw(operands())
    ne = draw(shapes())
    a = make.leaf(F32, ne, scale=draw(st.sampled_from([1.0, 20.0])))
    mask, bias = None, 0.0
    if draw(st.booleans()):
        rows = ne[1] + draw(st.sampled_from([0, 3]))
        ne_mask = (ne[0], rows, draw(st.sampled_from(divisors(ne[2]))), draw(st.sampled_from(divisors(ne[3]))))
        if 0 not in ne_mask[2:]:
            mask = make.leaf(draw(st.sampled_from([F16, F32])), ne_mask, mask_values(make, ne_mask[::-1]))
            bias = draw(st.sampled_from([0.0, 8.0]))
    node = ops.soft_max(a, mask, draw(st.sampled_from([1.0, 0.125])), bias, inplace=draw(st.booleans()))
    if draw(st.booleans()) and ne[2]:
        node = with_sinks(node, make.leaf(F32, (ne[2],), make.rng.standard_normal(ne[2])))
    return Case(node, make.contents, 1e-6, atol=1e-9)


@settings(deadline=None, max_examples=80)
@given(case=soft_max_cases())
def test_soft_max(device: Device, case: Case) -> None:
    check(case, device)


def test_cpu_supports_what_models_need(cpu_device: Device) -> None:
    make = Operands(np.random.default_rng(0))
    a = make.leaf(F32, (256, 4, 9))
    for dtype in (F16, F32):
        assert cpu_device.supports_op(ops.soft_max(a, make.leaf(dtype, (256, 4)), 0.125))
    assert cpu_device.supports_op(ops.soft_max(a))


@st.composite
def back_cases(draw: Callable) -> Case:
    make = draw(operands())
    ne = draw(shapes())
    dy, y = (make.like(draw(layouts(F32)), F32, ne) for _ in range(2))
    node = ops.soft_max_back(dy, y, draw(st.sampled_from([1.0, 0.125])))
    return Case(node, make.contents, 1e-7, atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(case=back_cases())
def test_soft_max_back(device: Device, case: Case) -> None:
    check(case, device)


def without_mask(node: Tensor) -> None:
    x = read(source(node, 0)) * node.param_f32(0)
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    write(node, e / e.sum(axis=-1, keepdims=True))


def one_sink_for_all(node: Tensor) -> None:
    sinks = option(node, 2)
    soft_max(node)
    if sinks is not None:
        write(node, read(node) * (1 + 1e-2 * np.arange(node.ne[2])[:, None, None]))


def without_the_sum(node: Tensor) -> None:
    write(node, read(source(node, 0)) * read(source(node, 1)) * node.param_f32(0))


def test_mutants_are_caught() -> None:
    assert_caught(back_cases(), mutant_of(Op.SOFT_MAX_BACK, (refuse_back, without_the_sum)))
    for wrong in (without_mask, one_sink_for_all):
        assert_caught(soft_max_cases(), mutant_of(Op.SOFT_MAX, (refuse, wrong)))
