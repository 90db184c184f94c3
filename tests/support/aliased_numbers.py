"""A program: one node whose result lies on its own row numbers, without the rule that refuses it. What row 0 writes become the
next row numbers: a kernel that reads them after they were checked leaves its table by terabytes and dies.

usage: aliased_numbers.py CASE right|wrong   (wrong: with the kernels of primitive_kernels/double_reads.py)
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import pyggml.ops.rules as rules
from pyggml import ops
from pyggml.backend.cpu import CPUDevice
from pyggml.dtypes import GGMLType
from pyggml.errors import ComputeError
from pyggml.graph import build_forward
from pyggml.jit import Spec
from pyggml.kernels.cpu import add_id, rows, ssm
from pyggml.tensor import Tensor

T = GGMLType
FAR = 1 << 29


def f32(*ne: int) -> Tensor:
    return Tensor(T.F32, ne)


def i32(*ne: int) -> Tensor:
    return Tensor(T.I32, ne)


def i64(*ne: int) -> Tensor:
    return Tensor(T.I64, ne)


CASES = {
    # node, its row numbers, what lies in each of its sources but those
    "get_rows": lambda: (ops.get_rows(i32(1024, 1), i32(9)), 1, np.full(1024, FAR, np.int32)),
    "get_rows MXFP4": lambda: (ops.get_rows(Tensor(T.MXFP4, (1024, 1)), i32(9)), 1, np.full(544, 0x72, np.uint8)),
    "set_rows": lambda: (ops.set_rows(f32(1024, 1), f32(1024, 9), i64(9)), 1, np.full(9216, FAR, np.int32)),
    "set_rows Q8_0": lambda: (ops.set_rows(Tensor(T.Q8_0, (1024, 1)), f32(1024, 9), i64(9)), 1, np.ones(9216, np.float32)),
    "add_id": lambda: (ops.add_id(f32(1024, 9, 1), f32(1024, 1), i32(9, 1)), 2, np.ones(9216, np.float32)),
    "ssm_scan": lambda: (
        ops.ssm_scan(f32(16, 4, 1, 1), f32(4, 1, 1, 3), f32(1, 1, 3), f32(1, 1), *[f32(16, 1, 1, 3)] * 2, i32(3)),
        6,
        np.ones(64, np.float32),
    ),
}  # fmt: skip


def mutant(module: str, factory: str, *rest: object) -> Spec:
    return Spec("primitive_kernels.double_reads", factory, *rest)  # type: ignore[arg-type]


def main(name: str, which: str) -> None:
    rules.check_overlap = lambda node: None
    if which == "wrong":
        for family in (rows, add_id, ssm):
            family.Spec = mutant
    node, numbers, contents = CASES[name]()
    device = CPUDevice()
    buffer = device.alloc_buffer(1 << 20)
    at = 1 << 19
    for i, t in enumerate(node.src):
        assert t is not None
        if i == numbers:
            buffer.place(t, 0)
        elif t is not node.view_src:
            buffer.place(t, at)
            buffer.set(t, contents.view(np.uint8)[: t.nbytes])
            at += (t.nbytes + 63) // 64 * 64
    for t in (node, node.view_src):
        if t is not None:
            buffer.place(t, 0)
    backend = device.open(1)
    print("begins", flush=True)
    try:
        backend.compute(backend.plan(build_forward([node])))
    except ComputeError as error:
        print(f"ends: {error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
