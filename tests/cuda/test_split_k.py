"""Products on tensor cores whose grid leaves much of the GPU idle: blocks share k, and the last one adds up what they have, in the
same order every time.

On an emulated GPU.
"""

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed: pip install '.[cuda]'")

from cuda_device import EmulatedDevice
from cuda_emulator import EmulatedGPU
from cuda_recording import RecordingGPU, VirtualGPU, place
from op_cases import F16, F32, I32, Operands

from pyggml import ops
from pyggml.backend.cuda.device import CudaDevice
from pyggml.dtypes import GGMLType
from pyggml.graph import build_forward
from pyggml.kernels.cuda import mma_parts
from pyggml.tensor import Tensor

T = GGMLType


def product(make: Operands, dtype: GGMLType, k: int, n: int, m: int) -> Tensor:
    return ops.mul_mat(make.leaf(dtype, (k, n), scale=k**-0.5), make.leaf(F32, (k, m)))


def computed(node: Tensor, make: Operands, seed: int, multiprocessors: int) -> list[bytes]:
    """Three runs."""
    gpu = EmulatedGPU(seed=seed)
    gpu.multiprocessors = multiprocessors
    device = EmulatedDevice(gpu)
    place(device, node)
    for t, data in make.contents.values():
        t.buffer.set(t, data)
    backend = device.open()
    plan = backend.plan(build_forward([node]))
    found = []
    for _ in range(3):
        node.buffer.memset(node, 0xFF)
        backend.compute(plan)
        found.append(node.buffer.get(node))
    assert (plan.steps[-1][1][2] > 1) == (multiprocessors > 2)
    return found


@pytest.mark.parametrize(
    ("dtype", "k"), [(T.Q4_0, 1056), (T.Q6_K, 768), (F16, 328)], ids=lambda x: getattr(x, "name", str(x))
)
def test_the_sums_are_those_of_whole_rows(dtype: GGMLType, k: int) -> None:
    """The last stage is not full, nor is the tile; of four blocks the last has fewer stages."""
    make = Operands(np.random.default_rng(0))
    node = product(make, dtype, k, 70, 20)
    whole = np.frombuffer(computed(node, make, 0, 1)[0], np.float32)
    runs = [run for seed in (1, 2) for run in computed(node, make, seed, 4)]
    assert len(set(runs)) == 1, "the order of blocks changes bits"
    found = np.frombuffer(runs[0], np.float32)
    error = ((found - whole) ** 2).sum() / (whole**2).sum()
    assert error < 1e-12 and np.isfinite(found).all(), error


def grid(node: Tensor) -> tuple[int, int, int]:
    device = CudaDevice(VirtualGPU())
    place(device, node)
    return device.open().plan(build_forward([node])).steps[-1][1]


def test_only_grids_that_leave_half_of_the_gpu_idle_are_split() -> None:
    def of(n: int, m: int) -> Tensor:
        return product(Operands(np.random.default_rng(0)), F16, 4096, n, m)

    assert grid(of(128, 64)) == (1, 1, mma_parts.MOST_SPLITS)
    assert grid(of(1024, 64)) == (8, 1, 8) and grid(of(128 * 20, 128)) == (20, 2, 3)
    assert grid(of(128 * 40, 128)) == (40, 2, 1)
    make = Operands(np.random.default_rng(0))
    batched = ops.mul_mat(make.leaf(F16, (512, 32, 2)), make.leaf(F32, (512, 20, 2)))
    assert grid(batched) == (1, 1, 2)
    short = ops.mul_mat(make.leaf(F16, (192, 32)), make.leaf(F32, (192, 20)))
    assert grid(short) == (1, 1, 1)


def test_experts_are_not_split() -> None:
    make = Operands(np.random.default_rng(0))
    ids = make.leaf(I32, (2, 40), np.zeros(80))
    node = ops.mul_mat_id(make.leaf(T.Q4_0, (1024, 32, 4)), make.leaf(F32, (1024, 1, 40)), ids)
    device = CudaDevice(RecordingGPU())
    place(device, node)
    step = device.open().plan(build_forward([node])).steps[-1]
    assert step[0].module == "mma" and step[1][2] == 1
