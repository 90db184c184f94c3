"""ROPE: normal and neox pairs, linear and yarn scaling, frequency factors."""

from collections.abc import Callable

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import DENSE_ROWS, F16, F32, I32, Case, Operands, layouts, operands
from op_check import assert_caught, check, wrong_twin

from pyggml import ops
from pyggml.backend.base import Device
from pyggml.backend.reference import rope as law
from pyggml.ops import ROPE_NEOX, ROPE_NORMAL, Op
from pyggml.tensor import Tensor, pack_params

# ggml's angles are products of many factors in F32: off by 1e-4 rad at position 1000
ANGLES_NMSE = 1e-6


@st.composite
def rope_cases(draw: Callable) -> Case:
    make = draw(operands(specials=False))
    dtype = draw(st.sampled_from([F32, F16]))
    n_dims = draw(st.sampled_from([2, 6, 32, 64, 80, 128]))
    ne0 = n_dims + draw(st.sampled_from([0, 0, 2, 30]))
    n_tokens = draw(st.sampled_from([1, 2, 7, 33, 0]))
    ne = (ne0, draw(st.sampled_from([1, 3, 9])), n_tokens, draw(st.sampled_from([1, 2])))
    a = make.like(draw(layouts(dtype, DENSE_ROWS)), dtype, ne)
    positions = make.leaf(I32, (n_tokens,), make.rng.integers(0, draw(st.sampled_from([10, 1000])), n_tokens))
    factors = None
    if draw(st.booleans()):
        n = n_dims // 2 + draw(st.integers(0, 1))
        factors = make.leaf(F32, (n,), make.rng.uniform(0.5, 8.0, n))
    yarn = draw(st.booleans())
    node = ops.rope(
        a,
        positions,
        n_dims,
        draw(st.sampled_from([ROPE_NORMAL, ROPE_NEOX])),
        factors=factors,
        n_ctx_orig=draw(st.sampled_from([64, 4096])),
        freq_base=draw(st.sampled_from([10000.0, 100.0, 500000.0])),
        freq_scale=draw(st.sampled_from([1.0, 0.25])),
        ext_factor=draw(st.sampled_from([1.0, 0.5])) if yarn else 0.0,
        attn_factor=draw(st.sampled_from([1.0, 1.2])),
    )
    return Case(node, make.contents, 2 * ANGLES_NMSE if dtype == F16 else ANGLES_NMSE, atol=1e-6)


@settings(deadline=None, max_examples=80)
@given(case=rope_cases())
def test_rope(device: Device, case: Case) -> None:
    check(case, device)


def with_offset(node: Tensor, offset: int) -> Tensor:
    """The rotated dimensions need not be the first ones (ggml_rope_set_offset)."""
    params = bytearray(node.op_params)
    params[60:64] = pack_params("i", offset)[:4]
    shifted = Tensor(node.type, node.ne, op=Op.ROPE, op_params=bytes(params), src=node.src)
    ops.check(shifted)
    return shifted


def test_rotation_from_an_offset_on(device: Device) -> None:
    make = Operands(np.random.default_rng(0))
    a, positions = make.leaf(F32, (24, 2, 3)), make.leaf(I32, (3,), np.array([0, 5, 9]))
    for mode in (ROPE_NORMAL, ROPE_NEOX):
        for offset in (0, 4, 8):
            check(Case(with_offset(ops.rope(a, positions, 16, mode), offset), make.contents, 1e-7), device)


def test_what_cannot_be_rotated_is_refused(cpu_device: Device) -> None:
    make = Operands(np.random.default_rng(0))
    a, positions = make.leaf(F32, (24, 2, 3)), make.leaf(I32, (3,), np.array([0, 5, 9]))
    for device in (cpu_device, law_device()):
        for offset in (-2, 3, 10):
            assert not device.supports_op(with_offset(ops.rope(a, positions, 16), offset)), offset
        assert not device.supports_op(ops.rope(a, positions, 16, mode=4))
        assert not device.supports_op(ops.rope(a, positions, 16, freq_base=-1.0))


def law_device() -> Device:
    return wrong_twin(Op.ROPE, (law.refuse, law.rope))


def test_cpu_supports_what_models_need(cpu_device: Device) -> None:
    make = Operands(np.random.default_rng(0))
    positions, factors = make.leaf(I32, (3,), np.arange(3)), make.leaf(F32, (32,))
    for layout in ("dense", "planes", "rows"):
        a = make.like(layout, F32, (64, 9, 3))
        for mode in (ROPE_NORMAL, ROPE_NEOX):
            assert cpu_device.supports_op(ops.rope(a, positions, 64, mode))
            assert cpu_device.supports_op(ops.rope(a, positions, 64, mode, factors=factors, freq_scale=0.5))
            assert cpu_device.supports_op(ops.rope(a, positions, 64, mode, ext_factor=1.0, n_ctx_orig=4096))


def other_pairs(node: Tensor) -> None:
    flipped = bytearray(node.op_params)
    flipped[8:12] = pack_params("i", ROPE_NEOX - node.param_i32(2))[:4]
    twin = Tensor(node.type, node.ne, node.nb, op=Op.ROPE, op_params=bytes(flipped), src=node.src)
    twin.buffer, twin.data = node.buffer, node.data
    law.rope(twin)


def without_factors(node: Tensor) -> None:
    twin = Tensor(node.type, node.ne, node.nb, op=Op.ROPE, op_params=node.op_params, src=node.src[:2])
    twin.buffer, twin.data = node.buffer, node.data
    law.rope(twin)


def test_wrong_twins_are_caught() -> None:
    for wrong in (other_pairs, without_factors):
        assert_caught(rope_cases(), wrong_twin(Op.ROPE, (law.refuse, wrong)))
