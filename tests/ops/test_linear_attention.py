"""GATED_LINEAR_ATTN, RWKV_WKV6, RWKV_WKV7: several sequences, heads of any size."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import F32, Case, Operands, operands
from op_check import assert_caught, check, mutant_of

from pyggml import ops
from pyggml.backend.base import Device
from pyggml.backend.reference import linear_attention as reference
from pyggml.backend.reference.values import read, write
from pyggml.errors import ShapeError
from pyggml.ops import Op
from pyggml.tensor import Tensor

OPS = (Op.GATED_LINEAR_ATTN, Op.RWKV_WKV6, Op.RWKV_WKV7)


@st.composite
def cases(draw: Callable, op: Op) -> Case:
    make = draw(operands(specials=False))
    size, heads = draw(st.sampled_from((1, 5, 16, 31, 64))), draw(st.sampled_from((1, 3)))
    sequences, each = draw(st.sampled_from((1, 2, 3))), draw(st.sampled_from((1, 2, 7)))
    ne = (size, heads, sequences * each)

    def leaf() -> Tensor:
        return make.leaf(F32, ne, scale=size**-0.5)

    decay = make.leaf(F32, ne, make.rng.uniform(0.5, 1.0, ne[::-1]))
    state = make.leaf(F32, (size * size * heads, sequences))
    if op == Op.GATED_LINEAR_ATTN:
        node = ops.gated_linear_attn(leaf(), leaf(), leaf(), decay, state, draw(st.sampled_from((1.0, 0.125))))
    elif op == Op.RWKV_WKV6:
        node = ops.rwkv_wkv6(leaf(), leaf(), leaf(), make.leaf(F32, (size, heads)), decay, state)
    else:
        node = ops.rwkv_wkv7(leaf(), decay, leaf(), leaf(), leaf(), leaf(), state)
    make.contents[id(node)] = (node, bytes(node.nbytes))  # ggml adds to what is there
    return Case(node, make.contents, 1e-7, atol=1e-6)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_linear_attention(device: Device, op: Op) -> None:
    @settings(deadline=None, max_examples=40)
    @given(case=cases(op))
    def attempt(case: Case) -> None:
        check(case, device)

    attempt()


def test_what_does_not_fit() -> None:
    make = Operands(np.random.default_rng(0))
    x, other = make.leaf(F32, (8, 2, 6)), make.leaf(F32, (8, 2, 5))
    state = make.leaf(F32, (128, 2))
    with pytest.raises(ShapeError, match="shapes differ"):
        ops.gated_linear_attn(x, other, x, x, state, 1.0)
    with pytest.raises(ShapeError, match="4 sequences of 6 tokens"):
        ops.gated_linear_attn(x, x, x, x, make.leaf(F32, (128, 4)), 1.0)
    with pytest.raises(ShapeError, match="another size"):
        ops.rwkv_wkv7(x, x, x, x, x, x, make.leaf(F32, (64, 2)))
    with pytest.raises(ShapeError, match="one bonus a channel"):
        ops.rwkv_wkv6(x, x, x, make.leaf(F32, (8,)), x, state)


def one_sequence(compute: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
    """All states are that of the first sequence."""

    def wrong(node: Tensor) -> None:
        compute(node)
        state = node.src[-1]
        assert state is not None
        values = read(node).ravel()
        values[-state.ne[0] :] = values[-state.nelements :][: state.ne[0]]
        write(node, values.reshape(1, 1, node.ne[1], node.ne[0]))

    return wrong


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_mutants_are_caught(op: Op) -> None:
    assert_caught(cases(op), mutant_of(op, (reference.refuse, one_sequence(reference.REFERENCE_OPS[op][1]))))
