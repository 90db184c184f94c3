"""GATED_DELTA_NET."""

from collections.abc import Callable

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import F32, Case, Operands, operands
from op_check import assert_caught, check, mutant_of, run

from pyggml import ops
from pyggml.backend.base import Device
from pyggml.backend.reference import gated_delta_net as reference
from pyggml.ops import Op
from pyggml.tensor import Tensor


@st.composite
def delta_cases(draw: Callable) -> Case:
    make = draw(operands(specials=False))
    head, n_tokens, n_seqs = (draw(st.sampled_from(s)) for s in ((1, 7, 16, 33, 64), (1, 2, 3, 9), (1, 2)))
    heads_q, repeat = draw(st.sampled_from((1, 2, 3))), draw(st.sampled_from((1, 2)))
    n_head, slots = heads_q * repeat, draw(st.sampled_from((1, 1, 2, 5)))
    seqs_q = draw(st.sampled_from((1, n_seqs)))

    def rows(n_head: int, n_seqs: int, scale: float) -> Tensor:
        """(head, n_head, n_tokens, n_seqs), now and then with heads behind each other in memory."""
        if draw(st.booleans()):
            return ops.permute(make.leaf(F32, (head, n_tokens, n_head, n_seqs), scale=scale), 0, 2, 1, 3)
        return make.leaf(F32, (head, n_head, n_tokens, n_seqs), scale=scale)

    q, k, v = rows(heads_q, seqs_q, head**-0.5), rows(heads_q, n_seqs, head**-0.5), rows(n_head, n_seqs, 1.0)
    n_gate = draw(st.sampled_from((1, head)))
    g = make.leaf(F32, (n_gate, n_head, n_tokens, n_seqs), -make.rng.uniform(0, 3, n_gate * n_head * n_tokens * n_seqs))
    beta = make.leaf(F32, (1, n_head, n_tokens, n_seqs), make.rng.uniform(0, 1, n_head * n_tokens * n_seqs))
    state = make.leaf(F32, (head, head, n_head, n_seqs))
    return Case(ops.gated_delta_net(q, k, v, g, beta, state, slots), make.contents, 1e-6, atol=1e-6)


@settings(deadline=None, max_examples=80)
@given(case=delta_cases())
def test_gated_delta_net(device: Device, case: Case) -> None:
    check(case, device)


def test_a_value_is_found_again_under_its_key(device: Device) -> None:
    """Without decay and with beta 1 the state holds the last value written under each of orthogonal keys."""
    make = Operands(np.random.default_rng(0))
    keys = np.eye(16)[[3, 5, 3, 9]]
    values = make.rng.standard_normal((4, 16))
    q, k, v = (make.leaf(F32, (16, 1, 4), data) for data in (np.eye(16)[[3, 3, 5, 3]], keys, values))
    g, beta = make.leaf(F32, (1, 1, 4), np.zeros(4)), make.leaf(F32, (1, 1, 4), np.ones(4))
    node = ops.gated_delta_net(q, k, v, g, beta, make.leaf(F32, (16, 16, 1), np.zeros(256)))
    _, result = run(Case(node, make.contents, 0.0), device)
    np.testing.assert_allclose(result[0, 0, :4] * 4, values[[0, 0, 1, 2]], atol=1e-6)


def with_changes(change: Callable[[list[np.ndarray]], None]) -> Callable[[Tensor], None]:
    """The specification for other sources."""

    def wrong(node: Tensor) -> None:
        read = reference.read
        arrays = [read(s) for s in node.src[:6] if s is not None]
        change(arrays)
        found = iter(arrays)
        reference.read = lambda _: next(found)
        try:
            reference.gated_delta_net(node)
        finally:
            reference.read = read

    return wrong


def decay_of_keys_on_values(a: list[np.ndarray]) -> None:
    a[5] = a[5].swapaxes(-1, -2)


def no_decay(a: list[np.ndarray]) -> None:
    a[3] = a[3] * 0


def queries_swapped_with_keys(a: list[np.ndarray]) -> None:
    if a[0].shape == a[1].shape:
        a[0], a[1] = a[1], a[0]


def neighbours_share_heads(a: list[np.ndarray]) -> None:
    n = a[2].shape[2]
    a[0], a[1] = (np.repeat(x, n // x.shape[2], axis=2) for x in a[:2])


def test_mutants_are_caught() -> None:
    for change in (decay_of_keys_on_values, no_decay, queries_swapped_with_keys, neighbours_share_heads):
        assert_caught(delta_cases(), mutant_of(Op.GATED_DELTA_NET, (reference.refuse, with_changes(change))))
