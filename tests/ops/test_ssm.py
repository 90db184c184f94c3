"""SSM_CONV and SSM_SCAN."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import F32, I32, Case, Operands, operands
from op_check import assert_caught, check, mutant_of, run

from pyggml import ops
from pyggml.backend.base import Device
from pyggml.backend.host import view_of
from pyggml.backend.reference import ReferenceDevice
from pyggml.backend.reference import ssm as reference
from pyggml.backend.reference.values import read, source, write
from pyggml.errors import ComputeError
from pyggml.ops import Op
from pyggml.tensor import Tensor


@st.composite
def conv_cases(draw: Callable) -> Case:
    make = draw(operands(specials=False))
    width, channels, n_seqs = (draw(st.sampled_from(s)) for s in ((1, 3, 4, 9), (1, 5, 33), (1, 2, 3)))
    n_tokens = draw(st.sampled_from((1, 2, 7, 15, 16, 17, 33, 64)))
    x, weights = make.leaf(F32, (width - 1 + n_tokens, channels, n_seqs)), make.leaf(F32, (width, channels))
    return Case(ops.ssm_conv(x, weights), make.contents, 1e-7, atol=1e-6)


@st.composite
def scan_cases(draw: Callable, slots: tuple[int, ...] = (1, 1, 2, 5), n_seqs: tuple[int, ...] = (1, 2)) -> Case:
    make = draw(operands(specials=False))
    d_state, head_dim = draw(st.sampled_from((1, 3, 16, 17, 33, 128))), draw(st.sampled_from((1, 2, 4, 5, 11)))
    n_group, share, n_tokens = (draw(st.sampled_from(s)) for s in ((1, 2, 3), (1, 2), (1, 2, 4, 9)))
    n_head, seqs, kept = n_group * share, draw(st.sampled_from(n_seqs)), draw(st.sampled_from(slots))
    n_states = seqs + draw(st.integers(0, 2))
    n_decay = draw(st.sampled_from((1, d_state))) if kept == 1 else 1
    s = make.leaf(F32, (d_state, head_dim, n_head, n_states))
    x, b, c = (
        beside(make, draw(st.booleans()), ne)
        for ne in ((head_dim, n_head, n_tokens, seqs), *[(d_state, n_group, n_tokens, seqs)] * 2)
    )
    dt = make.leaf(F32, (n_head, n_tokens, seqs), scale=draw(st.sampled_from((1.0, 12.0))))  # both sides of softplus
    decay = make.leaf(F32, (n_decay, n_head), -make.rng.uniform(0.005, 1.0, n_decay * n_head))
    ids = make.leaf(I32, (seqs,), make.rng.permutation(n_states)[:seqs])
    return Case(ops.ssm_scan(s, x, dt, decay, b, c, ids, kept), make.contents, 1e-6, atol=1e-6)


def beside(make: Operands, apart: bool, ne: tuple[int, int, int, int]) -> Tensor:
    """A tensor whose heads lie densely, in tokens that have something between them."""
    if not apart:
        return make.leaf(F32, ne)
    whole = make.leaf(F32, (ne[0] * ne[1] + 3, *ne[2:]))
    return ops.view(whole, ne, (4 * ne[0], *whole.nb[1:3]), 8)


@settings(deadline=None, max_examples=60)
@given(case=conv_cases())
def test_ssm_conv(device: Device, case: Case) -> None:
    check(case, device)


@settings(deadline=None, max_examples=80)
@given(case=scan_cases())
def test_ssm_scan(device: Device, case: Case) -> None:
    check(case, device)


@pytest.mark.parametrize("bad", [-1, 3, 2**31 - 1])
def test_a_state_that_is_not_there_is_reported(cpu_device: Device, bad: int) -> None:
    make = Operands(np.random.default_rng(0))
    s, x = make.leaf(F32, (16, 2, 3, 3)), make.leaf(F32, (2, 3, 4, 2))
    b, c = (make.leaf(F32, (16, 1, 4, 2)) for _ in range(2))
    ids = make.leaf(I32, (2,), np.array([0, bad]))
    node = ops.ssm_scan(s, x, make.leaf(F32, (3, 4, 2)), make.leaf(F32, (1, 3)), b, c, ids)
    for device in (cpu_device, ReferenceDevice()):
        with pytest.raises(ComputeError, match=f"SSM_SCAN .*{bad}"):
            run(Case(node, make.contents, 0.0), device)


def test_older_states_are_those_of_shorter_texts(cpu_device: Device) -> None:
    make = Operands(np.random.default_rng(0))
    s, decay = make.leaf(F32, (17, 2, 3, 1)), make.leaf(F32, (1, 3), -np.ones(3))
    arrays = [make.rng.standard_normal(shape) for shape in ((5, 3, 2), (5, 3), (5, 1, 17), (5, 1, 17))]
    ids = make.leaf(I32, (1,), np.array([0]))

    def states(n_tokens: int, slots: int) -> np.ndarray:
        shapes = ((2, 3, n_tokens), (3, n_tokens), (17, 1, n_tokens), (17, 1, n_tokens))
        x, dt, b, c = (make.leaf(F32, ne, a[:n_tokens]) for ne, a in zip(shapes, arrays, strict=True))
        node = ops.ssm_scan(s, x, dt, decay, b, c, ids, slots)
        _, values = run(Case(node, make.contents, 0.0), cpu_device)
        return values.reshape(-1)[6 * n_tokens :].reshape(slots, -1)

    whole = states(5, 4)
    for ago in range(4):
        np.testing.assert_array_equal(whole[ago], states(5 - ago, 1)[0])


def windows_reversed(node: Tensor) -> None:
    x, w = read(source(node, 0))[0], read(source(node, 1))[0, 0]
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[1], axis=-1)
    write(node, np.einsum("sctw,cw->stc", windows, w[:, ::-1])[None])


def first_states(node: Tensor) -> None:
    """The numbers of the states are not looked at."""
    ids = view_of(source(node, 6))
    before = ids.copy()
    ids[...] = np.arange(ids.size)
    reference.ssm_scan(node)
    ids[...] = before


def groups_come_in_turn(node: Tensor) -> None:
    repeat = np.repeat
    np.repeat = lambda a, n, axis: np.tile(a, (1, 1, n, 1))
    try:
        reference.ssm_scan(node)
    finally:
        np.repeat = repeat


def oldest_state_first(node: Tensor) -> None:
    reference.ssm_scan(node)
    x, slots, n_tokens = source(node, 1), node.param_i32(0), source(node, 1).ne[2]
    states = view_of(node)[0, 0, 0, x.nelements :].reshape(slots, -1)[: min(slots, n_tokens)]
    states[...] = states[::-1].copy()


def test_mutants_are_caught() -> None:
    assert_caught(conv_cases(), mutant_of(Op.SSM_CONV, (reference.refuse_conv, windows_reversed)))
    for wrong in (first_states, groups_come_in_turn, oldest_state_first):
        assert_caught(scan_cases(), mutant_of(Op.SSM_SCAN, (reference.refuse_scan, wrong)))
