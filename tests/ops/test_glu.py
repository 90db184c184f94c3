"""GLU: gated units, of two tensors or of two halves."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import F32, FLOATS, ROUNDING, Case, Operands, layouts, operands, shapes
from op_check import assert_caught, check, mutant_of

from pyggml import ops
from pyggml.backend.base import Device
from pyggml.backend.reference.glu import refuse
from pyggml.backend.reference.unary import silu
from pyggml.backend.reference.values import option, read, source, write
from pyggml.ops import GluOp, Op
from pyggml.tensor import Tensor, pack_params


def glu_node(a: Tensor, b: Tensor | None, kind: GluOp, swapped: bool) -> Tensor:
    """With the two further parameters, alpha and limit, of the OAI and clamped kinds."""
    plain = ops.glu(a, b, kind, swapped)
    params = pack_params("iiff", kind, swapped, 1.702, 2.5)
    node = Tensor(plain.type, plain.ne, op=Op.GLU, op_params=params, src=plain.src)
    ops.check(node)
    return node


@st.composite
def glu_cases(draw: Callable, kind: GluOp) -> Case:
    dtype = draw(st.sampled_from(FLOATS))
    halves = draw(st.booleans())
    tables = kind in (GluOp.GEGLU, GluOp.GEGLU_QUICK)  # ggml looks these up by an F16, in F32 too
    # a gate is finite: inf * 0 depends on which side of 0 a tiny result falls
    make = draw(operands(specials=False if tables or halves else None))
    ne = draw(shapes())
    a = make.like(draw(layouts(dtype, ("dense", "rows"))), dtype, ne, scale=draw(st.sampled_from([1.0, 5.0])))
    make.specials = False
    b = None if halves else make.like(draw(layouts(dtype, ("dense", "rows"))), dtype, ne)
    node = glu_node(a, b, kind, draw(st.booleans()))
    coarse = {"peer_nmse": 1e-5, "peer_atol": 5e-4} if tables else {}
    return Case(node, make.contents, ROUNDING[dtype], atol=1e-6, **coarse)


@pytest.mark.parametrize("kind", list(GluOp), ids=lambda kind: kind.name)
def test_glu(device: Device, kind: GluOp) -> None:
    @settings(deadline=None, max_examples=25)
    @given(case=glu_cases(kind))
    def run(case: Case) -> None:
        check(case, device)

    run()


def test_cpu_supports_what_models_need(cpu_device: Device) -> None:
    make = Operands(np.random.default_rng(0))
    a, b = make.leaf(F32, (1536, 3)), make.leaf(F32, (1536, 3))
    for kind in GluOp:
        assert cpu_device.supports_op(ops.glu(a, b, kind)), kind
        assert cpu_device.supports_op(ops.glu(a, None, kind)), kind


def halves_not_swapped(node: Tensor) -> None:
    x, gate = read(source(node, 0)), option(node, 1)
    half = node.ne[0]
    first, second = (x[..., :half], x[..., half : 2 * half]) if gate is None else (x, read(gate))
    write(node, silu(first) * second)


def test_a_mutant_is_caught() -> None:
    assert_caught(glu_cases(GluOp.SWIGLU), mutant_of(Op.GLU, (refuse, halves_not_swapped)))
