"""ROPE and ROPE_BACK: all five kinds of pairs and positions, linear and yarn scaling, frequency factors."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import DENSE_ROWS, F16, F32, I32, Case, Operands, layouts, operands
from op_check import assert_caught, check, mutant_of, run

from pyggml import ops
from pyggml.backend.base import Device
from pyggml.backend.reference import REFERENCE_OPS, ReferenceDevice
from pyggml.backend.reference import rope as reference
from pyggml.errors import ShapeError
from pyggml.ops import ROPE_IMROPE, ROPE_MODES, ROPE_MROPE, ROPE_NEOX, ROPE_NORMAL, ROPE_VISION, Op
from pyggml.tensor import Tensor, pack_params

# ggml's angles are products of many factors in F32: off by 1e-4 rad at position 1000
ANGLES_NMSE = 1e-6


@st.composite
def rope_cases(draw: Callable, modes: tuple[int, ...] = ROPE_MODES) -> Case:
    make = draw(operands(specials=False))
    dtype, mode = draw(st.sampled_from([F32, F16])), draw(st.sampled_from(modes))
    n_dims = draw(st.sampled_from([2, 6, 32, 64, 80, 128]))
    ne0 = 2 * n_dims if mode == ROPE_VISION else n_dims + draw(st.sampled_from([0, 0, 2, 30]))
    n_tokens = draw(st.sampled_from([1, 2, 7, 33, 0]))
    ne = (ne0, draw(st.sampled_from([1, 3, 9])), n_tokens, draw(st.sampled_from([1, 2])))
    a = make.like(draw(layouts(dtype, DENSE_ROWS)), dtype, ne)
    n_positions, sections = n_tokens, (0, 0, 0, 0)
    if mode & ROPE_MROPE:  # as many pairs as there are, or fewer, so that the sections come again
        n_positions = 4 * n_tokens
        parts = [draw(st.integers(0, 9)) for _ in range(4)]
        parts[draw(st.integers(0, 2))] += 1
        sections = tuple(min(part, ne0 // 4) for part in parts)  # type: ignore[assignment]
        sections = sections if any(sections[:3]) else (1, 0, 0, 0)
    bound = draw(st.sampled_from([10, 1000]))
    positions = make.leaf(I32, (n_positions,), make.rng.integers(0, bound, n_positions))
    divisors = None
    if draw(st.booleans()):
        n = ops.rope_pairs(n_dims, mode) + draw(st.integers(0, 1))
        divisors = make.leaf(F32, (n,), make.rng.uniform(0.5, 8.0, n))
    yarn = draw(st.booleans())
    node = ops.rope(
        a,
        positions,
        n_dims,
        mode,
        factors=divisors,
        sections=sections,
        n_ctx_orig=draw(st.sampled_from([0, 64, 4096])),
        freq_base=draw(st.sampled_from([10000.0, 100.0, 500000.0])),
        freq_scale=draw(st.sampled_from([1.0, 0.25])),
        ext_factor=draw(st.sampled_from([1.0, 0.5])) if yarn else 0.0,
        attn_factor=draw(st.sampled_from([1.0, 1.2])),
        back=draw(st.booleans()),
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
    shifted = Tensor(node.type, node.ne, op=node.op, op_params=bytes(params), src=node.src)
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
        assert not device.supports_op(ops.rope(a, positions, 16, freq_base=-1.0))
        assert not device.supports_op(ops.rope(a, positions, 16, ext_factor=1.0, n_ctx_orig=-1))
        positions_of_4 = make.leaf(I32, (12,), np.arange(12))
        vision = ops.rope(a, positions_of_4, 12, ROPE_VISION, sections=(6, 6, 0, 0), factors=make.leaf(F32, (11,)))
        assert not device.supports_op(vision), "11 factors for 12 pairs"


def test_what_is_no_rotation_is_no_node() -> None:
    make = Operands(np.random.default_rng(0))
    a, positions = make.leaf(F32, (24, 2, 3)), make.leaf(I32, (3,), np.array([0, 5, 9]))
    many = make.leaf(I32, (12,), np.arange(12))
    for mode in (1, 4, 16, 10):
        with pytest.raises(ShapeError, match="mode"):
            ops.rope(a, positions, 16, mode)
    with pytest.raises(ShapeError, match="4 position"):
        ops.rope(a, positions, 16, ROPE_MROPE, sections=(4, 4, 0, 0))
    for sections in ((0, 0, 0, 4), (-1, 4, 4, 4), (20, 20, 0, 0)):
        with pytest.raises(ShapeError, match="sections"):
            ops.rope(a, many, 16, ROPE_MROPE, sections=sections)
    with pytest.raises(ShapeError, match="half a row"):
        ops.rope(a, many, 16, ROPE_VISION, sections=(4, 4, 0, 0))
    with pytest.raises(ShapeError, match="factors"):
        ops.rope(a, positions, 16, factors=make.leaf(F32, (7,)))


def test_in_place(device: Device) -> None:
    make = Operands(np.random.default_rng(0))
    positions = make.leaf(I32, (3,), np.array([0, 5, 9]))
    for dtype in (F32, F16):
        for back in (False, True):
            a = make.leaf(dtype, (80, 2, 3))
            node = ops.rope(ops.view(a, (64, 2, 3), a.nb[1:], 16), positions, 64, ROPE_NEOX, back=back, in_place=True)
            assert node.view_src is a
            check(Case(node, make.contents, 1e-6, atol=1e-6), device)


def test_back_undoes_it(cpu_device: Device) -> None:
    make = Operands(np.random.default_rng(0))
    many = make.leaf(I32, (12,), np.arange(12) * 37)
    for mode in ROPE_MODES:
        positions = many if mode & ROPE_MROPE else make.leaf(I32, (3,), np.arange(3) * 37)
        n_dims = 32 if mode == ROPE_VISION else 64
        a = make.leaf(F32, (64, 2, 3))
        there = ops.rope(a, positions, n_dims, mode, sections=(8, 12, 12, 0))
        again = ops.rope(there, positions, n_dims, mode, sections=(8, 12, 12, 0), back=True)
        _, values = run(Case(again, make.contents, 0.0), cpu_device)
        x = np.frombuffer(make.contents[id(a)][1], np.float32).reshape(values.shape)
        assert np.abs(values - x).max() < 1e-6, mode


def law_device() -> Device:
    return mutant_of(Op.ROPE, (reference.refuse, reference.rope))


def test_cpu_supports_what_models_need(cpu_device: Device) -> None:
    make = Operands(np.random.default_rng(0))
    positions, factors = make.leaf(I32, (3,), np.arange(3)), make.leaf(F32, (32,))
    for layout in ("dense", "planes", "rows"):
        a = make.like(layout, F32, (64, 9, 3))
        for mode in (ROPE_NORMAL, ROPE_NEOX):
            assert cpu_device.supports_op(ops.rope(a, positions, 64, mode))
            assert cpu_device.supports_op(ops.rope(a, positions, 64, mode, factors=factors, freq_scale=0.5))
            assert cpu_device.supports_op(ops.rope(a, positions, 64, mode, ext_factor=1.0, n_ctx_orig=4096))


def as_if(node: Tensor, mode: int | None = None, op: Op | None = None, sections: bytes | None = None) -> None:
    """The specification for a node that differs from this one."""
    params = bytearray(node.op_params)
    if mode is not None:
        params[8:12] = pack_params("i", mode)[:4]
    if sections is not None:
        params[44:60] = sections
    changed = Tensor(node.type, node.ne, node.nb, op=op or node.op, op_params=bytes(params), src=node.src)
    changed.buffer, changed.data = node.buffer, node.data
    reference.rope(changed)


def other_pairs(node: Tensor) -> None:
    as_if(node, mode=ROPE_NEOX - node.param_i32(2))


def no_interleaving(node: Tensor) -> None:
    as_if(node, mode=ROPE_MROPE if node.param_i32(2) == ROPE_IMROPE else None)


def forward_only(node: Tensor) -> None:
    as_if(node, op=Op.ROPE)


def height_is_width(node: Tensor) -> None:
    params = node.op_params
    as_if(node, sections=params[44:48] + params[52:56] + params[48:52] + params[56:60])


def sections_go_on(node: Tensor) -> None:
    """Vision's sections each begin anew; here their frequencies go on falling."""
    found = reference.turns
    reference.turns = lambda n: (found(n)[0], n.param_f32(5) ** (-2.0 * np.arange(len(found(n)[0])) / n.param_i32(1)))
    try:
        reference.rope(node)
    finally:
        reference.turns = found


def without_factors(node: Tensor) -> None:
    changed = Tensor(node.type, node.ne, node.nb, op=node.op, op_params=node.op_params, src=node.src[:2])
    changed.buffer, changed.data = node.buffer, node.data
    reference.rope(changed)


@pytest.mark.parametrize(
    ("wrong", "modes"),
    [
        (other_pairs, (ROPE_NORMAL, ROPE_NEOX)),
        (no_interleaving, (ROPE_IMROPE,)),
        (height_is_width, (ROPE_MROPE,)),
        (sections_go_on, (ROPE_VISION,)),
        (without_factors, ROPE_MODES),
    ],
)
def test_mutants_are_caught(wrong: Callable[[Tensor], None], modes: tuple[int, ...]) -> None:
    mutant = ReferenceDevice(
        {**REFERENCE_OPS, Op.ROPE: (reference.refuse, wrong), Op.ROPE_BACK: (reference.refuse, wrong)}
    )
    assert_caught(rope_cases(modes), mutant)


def test_turning_the_wrong_way_is_caught() -> None:
    assert_caught(rope_cases((ROPE_NORMAL,)), mutant_of(Op.ROPE_BACK, (reference.refuse, forward_only)))
