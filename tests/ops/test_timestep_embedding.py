"""TIMESTEP_EMBEDDING."""

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import F32, Case, layouts, operands
from op_check import assert_caught, check, mutant_of

from pyggml import ops
from pyggml.backend.base import Device
from pyggml.backend.reference import timestep_embedding as reference
from pyggml.ops import Op
from pyggml.tensor import Tensor


@st.composite
def cases(draw: Callable) -> Case:
    make = draw(operands(specials=False))
    steps = make.like(draw(layouts(F32)), F32, (draw(st.sampled_from((1, 2, 7))),), scale=20.0)
    node = ops.timestep_embedding(
        steps, draw(st.sampled_from((1, 2, 3, 32, 65, 320))), draw(st.sampled_from((1, 10000)))
    )
    return Case(node, make.contents, 1e-9, peer_nmse=1e-7)


@settings(deadline=None, max_examples=40)
@given(case=cases())
def test_timestep_embedding(device: Device, case: Case) -> None:
    check(case, device)


def sines_first(node: Tensor) -> None:
    reference.timestep_embedding(node)
    values = reference.read(node)
    half = node.ne[0] // 2
    reference.write(node, values[..., [*range(half, 2 * half), *range(half), *range(2 * half, node.ne[0])]])


def test_mutants_are_caught() -> None:
    assert_caught(cases(), mutant_of(Op.TIMESTEP_EMBEDDING, (reference.refuse, sines_first)))
