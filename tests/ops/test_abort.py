"""An abort is obeyed within a step: products and attention that would take minutes or hours, over operands whose
rows overlap so that they need little memory, end soon after they are told to. Must not time anything: a kernel that does not ask hangs.
"""

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from op_cases import F16, F32, I32, Operands

from pyggml import ops
from pyggml.backend.cpu import CPUDevice
from pyggml.dtypes import SIZES, GGMLType
from pyggml.errors import ComputeError
from pyggml.graph import build_forward
from pyggml.tensor import Tensor

T = GGMLType


def leaf(make: Operands, dtype: GGMLType, ne: tuple[int, int, int, int], overlap: int) -> Tensor:
    """A leaf whose rows begin `overlap` elements (of block types: blocks) after one another; where it is less than 0,
    all elements are one."""
    block = SIZES[dtype].block_size
    made = make.leaf(dtype, (ne[0] + overlap * ne[1] * block if overlap >= 0 else block, 1, 1, 1))
    step = max(0, overlap) * made.nb[0]
    made.ne, made.nb = ne, (made.nb[0] if overlap >= 0 else 0, step, 0 if step == 0 else step * ne[1], 0)
    return made


def product(dtype: GGMLType, k: int, n: int, m: int, batch: int = 1) -> Callable[[Operands], Tensor]:
    return lambda make: ops.mul_mat(leaf(make, dtype, (k, n, 1, 1), 1), leaf(make, F32, (k, m, batch, 1), 0))


def attention(make: Operands) -> Tensor:
    q, k, v = (leaf(make, t, (64, n, 8, 1), 0) for t, n in ((F32, 256), (F16, 1 << 28), (F16, 1 << 28)))
    return ops.flash_attn_ext(q, k, v, None, 0.125)


def row_sums(make: Operands) -> Tensor:
    return ops.sum_rows(leaf(make, F32, ((1 << 31) - 1, 1, 64, 1), -1))


def rows_set(make: Operands) -> Tensor:
    """The same row of a small table again and again."""
    n = (1 << 31) - 1
    numbers = leaf(make, I32, (n, 64, 1, 1), -1)  # all are 0, as memory is at first
    return ops.set_rows(make.leaf(F32, (16, 4, 64)), leaf(make, F32, (16, n, 64, 1), 0), numbers)


BUILDERS: dict[str, Callable[[Operands], Tensor]] = {
    "a product of blocks": product(T.Q4_0, 1 << 20, 1 << 18, 64),
    "a product of floats": product(F32, 1 << 18, 1 << 20, 64),
    "a product of blocks that are unpacked first": product(T.TQ1_0, 1 << 18, 1 << 15, 256),
    "many products of one column": product(F16, 1 << 20, 16, 1, 1 << 20),
    "attention of a prompt": attention,
    "sums of long rows": row_sums,
    "rows that are set again and again": rows_set,
}


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("n_threads", [1, 2])
def test_a_long_step_is_aborted(name: str, n_threads: int) -> None:
    make = Operands(np.random.default_rng(1))
    node = BUILDERS[name](make)
    device = CPUDevice()
    graph = build_forward([node])
    placed = [t for t in (*node.src, node) if t is not None and t.view_src is None]
    sizes = [(t.nbytes + 255) // 128 * 128 for t in placed]
    buffer = device.alloc_buffer(sum(sizes))
    at = buffer.base
    for t, size in zip(placed, sizes, strict=True):
        t.buffer, t.data = buffer, at
        at += size
    if node.view_src is not None:
        node.buffer, node.data = buffer, node.view_src.data
    backend = device.open(n_threads)
    plan = backend.plan(graph)
    said: list[str] = []

    def compute() -> None:
        try:
            backend.compute(plan)
        except ComputeError as error:
            said.append(str(error))

    thread = threading.Thread(target=compute, daemon=True)
    thread.start()
    time.sleep(0.3)
    assert thread.is_alive()
    backend.abort()
    thread.join(timeout=60)
    assert not thread.is_alive(), "it goes on"
    assert said == ["CPU: aborted"]
    backend.close()
