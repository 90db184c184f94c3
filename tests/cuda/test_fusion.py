"""Matrix multiplications with an ADD or a GLU as epilogue: the same bits as single launches, and only where nothing else reads
what is between.

On an emulated GPU.
"""

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed: pip install '.[cuda]'")
from cuda_device import EmulatedDevice
from cuda_recording import RecordingGPU, place
from op_cases import BF16, F16, F32, Operands

from pyggml import ops
from pyggml.backend.cuda.device import CudaDevice
from pyggml.dtypes import GGMLType
from pyggml.graph import build_forward
from pyggml.ops import GluOp
from pyggml.tensor import Flag, Tensor

T = GGMLType


def build(make: Operands, ending: str, dtype: GGMLType = T.Q4_0, m: int = 1, k: int = 64, n: int = 12) -> list[Tensor]:
    """The nodes of a product and what is made of it, the last one last."""
    x = make.leaf(F32, (k, m))
    product = ops.mul_mat(make.leaf(dtype, (k, n)), x)
    if ending == "bias":
        return [product, ops.add(product, make.leaf(F32, (n,)))]
    if ending == "residual":
        return [product, ops.add(make.leaf(F32, (n, m)), product)]
    other = ops.mul_mat(make.leaf(dtype, (k, n)), x)
    return [product, other, ops.glu(product, other, GluOp[ending])]


def compute(nodes: list[Tensor], make: Operands, apart: bool) -> tuple[bytes, list[str]]:
    """The last node's bytes, and the names of what was launched."""
    device = EmulatedDevice()
    for node in nodes[:-1]:
        node.flags = node.flags | Flag.OUTPUT if apart else node.flags & ~Flag.OUTPUT
    place(device, nodes[-1])
    for t, data in make.contents.values():
        t.buffer.set(t, data)
    backend = device.open()
    plan = backend.plan(build_forward([nodes[-1]]))
    backend.compute(plan)
    result = nodes[-1]
    return result.buffer.get(result), [step[0].factory for step in plan.steps]


CASES = [(e, t, m) for e in ("bias", "residual", "SWIGLU") for t in (T.Q4_0, T.Q6_K, F16) for m in (1, 3)]
CASES += [("GEGLU", T.Q4_0, 1), ("REGLU", T.Q4_0, 1)]


@pytest.mark.parametrize(("ending", "dtype", "m"), CASES, ids=str)
def test_the_bits_are_those_of_single_launches(ending: str, dtype: GGMLType, m: int) -> None:
    for n in (1, 13):
        make = Operands(np.random.default_rng(n))
        nodes = build(make, ending, dtype, m, 512, n)
        single, names = compute(nodes, make, apart=True)
        fused, fewer = compute(nodes, make, apart=False)
        last = names[-2] if m > 1 else "products" if ending in ("bias", "residual") else "glu"
        assert fewer == [name for name in names if name == "quantize"] + [last], fewer
        assert fused == single and (n == 1 or np.frombuffer(fused, np.float32).any())


def names(nodes: list[Tensor], change: str) -> list[str]:
    """What a GPU is asked that runs nothing."""
    device = CudaDevice(RecordingGPU())
    place(device, *nodes)
    if change == "over the activations":
        nodes[-1].data = nodes[0].src[1].data
    elif change == "over the other operand":
        nodes[-1].data = nodes[-1].src[0].data + 16
    elif change == "upon the other operand":
        nodes[-1].data = nodes[-1].src[0].data
    plan = device.open().plan(build_forward(nodes))
    return [step[0].factory for step in plan.steps]


@pytest.mark.parametrize(
    ("change", "ending", "expected"),
    [
        ("nothing", "bias", ["floats"]),
        ("nothing", "residual", ["floats"]),
        ("upon the other operand", "residual", ["floats"]),
        ("over the other operand", "residual", ["floats", "binary"]),
        ("over the activations", "bias", ["floats", "binary"]),
        ("over the activations", "SWIGLU", ["floats", "floats", "glu"]),
        ("nothing", "SWIGLU", ["floats"]),
        ("nothing", "SWIGLU_OAI", ["floats", "floats", "glu"]),
        ("a second reader", "bias", ["floats", "binary", "scale"]),
        ("a second reader", "SWIGLU", ["floats", "floats", "glu", "scale"]),
        ("wanted outside", "bias", ["floats", "binary"]),
        ("wanted outside", "SWIGLU", ["floats", "floats", "glu"]),
        ("many columns", "bias", ["floats", "binary"]),
        ("with itself", "bias", ["floats", "binary"]),
        ("another type", "bias", ["floats", "binary"]),
        ("other activations", "SWIGLU", ["floats", "floats", "glu"]),
        ("another weight", "SWIGLU", ["floats", "floats", "glu"]),
    ],
)
def test_only_where_nobody_sees_a_difference(change: str, ending: str, expected: list[str]) -> None:
    make = Operands(np.random.default_rng(0))
    nodes = build(make, ending, F16, 20 if change == "many columns" else 2)
    product = nodes[0]
    if change == "a second reader":
        nodes.append(ops.scale(product, 2.0))
    elif change == "wanted outside":
        product.flags |= Flag.OUTPUT
    elif change == "with itself":
        nodes[-1] = ops.add(product, product)
    elif change == "another type":
        nodes[-1] = ops.add(product, make.leaf(BF16, (12,)))
    elif change == "other activations":
        nodes[1] = ops.mul_mat(make.leaf(F16, (64, 12)), make.leaf(F32, (64, 2)))
        nodes[-1] = ops.glu(product, nodes[1], GluOp.SWIGLU)
    elif change == "another weight":
        nodes[1] = ops.mul_mat(make.leaf(BF16, (64, 12)), product.src[1])
        nodes[-1] = ops.glu(product, nodes[1], GluOp.SWIGLU)
    assert names(nodes, change) == expected
