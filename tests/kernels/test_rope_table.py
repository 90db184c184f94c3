"""ROPE's table of cosines and sines: exact at far positions, made once for nodes that agree, anew when they do not."""

import numpy as np
import pytest
from op_cases import F32, I32, Operands
from op_check import every_tensor

from pyggml import ops
from pyggml.backend.cpu import CPUDevice, CPUPlan
from pyggml.graph import build_forward
from pyggml.ops import ROPE_NEOX, ROPE_NORMAL
from pyggml.tensor import Tensor


def planned(make: Operands, *outputs: Tensor) -> tuple[CPUPlan, object]:
    device = CPUDevice()
    backend = device.open(2)
    tensors = list({id(t): t for o in outputs for t in every_tensor(o)}.values())
    buffer = device.alloc_buffer(sum(t.nbytes + 64 for t in tensors))
    at = 0
    for t in tensors:
        if t.view_src is None:
            buffer.place(t, at)
            at += (t.nbytes + 63) // 64 * 64
            if id(t) in make.contents:
                buffer.set(t, make.contents[id(t)][1])
    for t in tensors:
        if t.view_src is not None:
            t.buffer, t.data = buffer, t.view_src.data + t.view_offs
    plan = backend.plan(build_forward(outputs))
    return plan, backend


def n_tables(make: Operands, *outputs: Tensor) -> int:
    plan, backend = planned(make, *outputs)
    backend.close()  # type: ignore[attr-defined]
    return len(plan.steps) - len(plan.nodes) + sum(1 for s in plan.steps if not s["dst"]["data"])


def test_far_positions_are_exact() -> None:
    make = Operands(np.random.default_rng(0))
    positions = np.array([0, 1, 4095, 99_999, 1_000_003, 2**31 - 1, -5])
    x = make.rng.standard_normal((7, 1, 128)).astype(np.float32)
    a, where = make.leaf(F32, (128, 1, 7), x), make.leaf(I32, (7,), positions)
    node = ops.rope(a, where, 128, ROPE_NEOX)
    plan, backend = planned(make, node)
    backend.compute(plan)  # type: ignore[attr-defined]
    backend.close()  # type: ignore[attr-defined]
    assert node.buffer is not None
    actual = np.frombuffer(node.buffer.get(node), np.float32).reshape(7, 2, 64).astype(np.float64)
    theta = positions[:, None] * 10000.0 ** (-np.arange(64) / 64)
    first, second = x.reshape(7, 2, 64).astype(np.float64).swapaxes(0, 1)
    expected = np.stack(
        [first * np.cos(theta) - second * np.sin(theta), first * np.sin(theta) + second * np.cos(theta)], axis=1
    )
    assert np.abs(actual - expected).max() < 2e-6
    in_f32 = np.float32(99_999) * (10000.0 ** (-np.arange(64) / 64)).astype(np.float32)
    assert np.abs(np.cos(in_f32.astype(np.float32)) - np.cos(theta[3])).max() > 1e-3, "angles in F32 would be caught"


def test_nodes_that_agree_share_a_table() -> None:
    make = Operands(np.random.default_rng(0))
    q, k, where = make.leaf(F32, (64, 9, 5)), make.leaf(F32, (64, 3, 5)), make.leaf(I32, (5,), np.arange(5))
    factors = make.leaf(F32, (32,), np.linspace(1, 8, 32))
    rope = ops.rope
    assert n_tables(make, rope(q, where, 64), rope(k, where, 64)) == 1
    assert n_tables(make, rope(q, where, 64, factors=factors), rope(k, where, 64, factors=factors)) == 1
    assert n_tables(make, rope(q, where, 64), rope(k, where, 64, factors=factors)) == 2
    assert n_tables(make, rope(q, where, 64), rope(k, where, 32)) == 2
    assert n_tables(make, rope(q, where, 64), rope(k, where, 64, freq_base=5e5)) == 2
    assert n_tables(make, rope(q, where, 64), rope(k, where, 64, ROPE_NEOX)) == 2
    assert n_tables(make, rope(q, where, 64), rope(k, make.leaf(I32, (5,), np.arange(5)), 64)) == 2


@pytest.mark.parametrize("which", ["positions", "factors"])
def test_what_is_overwritten_is_read_again(which: str) -> None:
    """The same tensor holds other values for the second node: a step between them writes into its memory."""
    make = Operands(np.random.default_rng(0))
    a, where = make.leaf(F32, (64, 1, 5)), make.leaf(I32, (5,), np.arange(5))
    factors = make.leaf(F32, (32,), np.ones(32))
    first = ops.rope(a, where, 64, ROPE_NORMAL, factors=factors)
    if which == "positions":
        change = ops.cpy(make.leaf(I32, (5,), np.arange(5) * 7), where)
    else:
        change = ops.cpy(make.leaf(F32, (32,), np.full(32, 3.0)), factors)
    second = ops.rope(a, where, 64, ROPE_NORMAL, factors=factors)
    plan, backend = planned(make, first, change, second)
    backend.compute(plan)  # type: ignore[attr-defined]
    backend.close()  # type: ignore[attr-defined]
    assert first.buffer is not None and second.buffer is not None
    results = [np.frombuffer(t.buffer.get(t), np.float32).reshape(5, 32, 2) for t in (first, second)]  # type: ignore[union-attr]
    x = np.frombuffer(make.contents[id(a)][1], np.float32).reshape(5, 32, 2).astype(np.float64)
    for result, step, divisor in zip(
        results, (1, 7 if which == "positions" else 1), (1, 1 if which == "positions" else 3), strict=True
    ):
        theta = np.arange(5)[:, None] * step * 10000.0 ** (-np.arange(32) / 32) / divisor
        rotated = (x[..., 0] + 1j * x[..., 1]) * np.exp(1j * theta)
        assert np.abs(result[..., 0] + 1j * result[..., 1] - rotated).max() < 1e-6
