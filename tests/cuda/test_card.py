"""What an emulator of single kernels cannot show: every kernel loads, a graph is noted and replayed and follows its
inputs, threads share a card, a lost card is told. On an emulated GPU at small sizes, with `pytest -m gpu` on a GPU."""

import subprocess
import sys
import threading

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed: pip install '.[cuda]'")

from cuda_device import EmulatedDevice
from cuda_kernels import KERNELS
from cuda_recording import place
from op_cases import F32

from pyggml import ops
from pyggml.backend.cuda.plan import CudaPlan
from pyggml.backend.reference import ReferenceDevice
from pyggml.dtypes import GGMLType
from pyggml.graph import build_forward
from pyggml.quants import QUANTS
from pyggml.tensor import Flag, Tensor


@pytest.mark.gpu
def test_every_kernel_loads(card):
    for expected in KERNELS:
        if expected.oldest <= card.gpu.cc:
            card.gpu.load(expected.spec)
    card.gpu.synchronize()


class Layer:
    """Products, norms and a gate over m columns, as a layer has them; its numbers follow from `seed`."""

    def __init__(self, device, m, seed, k=256, n=256, dtype=GGMLType.Q4_0):
        rng = np.random.default_rng(seed)
        self.x, g = Tensor(F32, (k, m)), Tensor(F32, (k,))
        ws = [Tensor(dtype, ne) for ne in ((k, n), (k, n), (n, k), (k, n))]
        h = ops.mul(ops.rms_norm(self.x, 1e-5), g)
        gate, up = ops.mul_mat(ws[0], h), ops.mul_mat(ws[1], h)
        y = ops.add(ops.mul_mat(ws[2], ops.glu(gate, up, ops.GluOp.SWIGLU)), self.x)
        self.result = ops.soft_max(ops.mul_mat(ws[3], ops.rms_norm(y, 1e-5)))
        self.result.flags |= Flag.OUTPUT
        place(device, self.result)
        for w in ws:
            values = (rng.standard_normal(w.nelements) * w.ne[0] ** -0.5).astype(np.float32)
            quant = QUANTS[dtype]
            w.buffer.set(
                w, np.ascontiguousarray(quant.quantize(values.reshape(-1, quant.block_size))).view(np.uint8).ravel()
            )
        g.buffer.set(g, np.ones(k, np.float32).view(np.uint8))
        self.shape, self.backend = (m, k), device.open()
        self.plan = self.backend.plan(build_forward([self.result]))

    def __call__(self, values) -> np.ndarray:
        self.x.buffer.set(self.x, np.ascontiguousarray(values, np.float32).reshape(-1).view(np.uint8))
        self.backend.compute(self.plan)
        return np.frombuffer(self.result.buffer.get(self.result), np.float32)


def sizes(device) -> tuple[int, int]:
    """Elements a row, rows: what fills a card, or what an emulator can do."""
    return (256, 256) if isinstance(device, EmulatedDevice) else (2048, 4096)


@pytest.mark.parametrize("m", [1, 3, 40])
def test_a_graph_is_replayed_and_follows_its_inputs(either, m):
    """Launched, noted, replayed, replayed: other inputs each time, as the reference computes them."""
    k, n = sizes(either)
    here, there = Layer(either, m, 1, k, n), Layer(ReferenceDevice(), m, 1, k, n)
    rng = np.random.default_rng(2)
    for _ in range(4):
        x = rng.standard_normal(here.shape)
        actual, expected = here(x), there(x)
        assert ((actual - expected) ** 2).sum() <= 1e-3 * (expected**2).sum()
    assert isinstance(here.plan, CudaPlan)
    assert here.plan.graph is not None, here.plan.unnoted


def test_threads_share_a_card(either):
    """Each with plans and memory of its own; each gets its own bits, time and again."""
    few = isinstance(either, EmulatedDevice)
    failed = []

    def client(seed: int) -> None:
        try:
            layer = Layer(either, 1 + seed % 3, seed)
            x = np.random.default_rng(seed).standard_normal(layer.shape)
            first = layer(x).tobytes()
            for _ in range(3 if few else 300):
                assert layer(x).tobytes() == first, f"client {seed} got other bits"
        except BaseException as error:
            failed.append(repr(error))

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(2 if few else 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, failed


LOST = """
from pyggml import ops
from pyggml.backend.cuda import cuda_devices
from pyggml.dtypes import GGMLType
from pyggml.errors import DeviceError
from pyggml.graph import build_forward
from pyggml.tensor import Tensor
device = cuda_devices()[0]
buffer, t = device.alloc_buffer(1 << 20), Tensor(GGMLType.F32, (1024,))
buffer.place(t, 0)
y = ops.scale(t, 2.0)
buffer.place(y, 8192)
backend = device.open()
t.data = 1 << 50
plan = backend.plan(build_forward([y]))
for step in (lambda: backend.compute(plan), lambda: device.alloc_buffer(64)):
    try:
        step()
    except DeviceError as error:
        print(error)
del plan
backend.close()
buffer.free()
print("freed")
"""


@pytest.mark.gpu
def test_an_illegal_address_is_told_and_what_is_given_back_is_not_looked_at(card):
    """In a process of its own, which cannot use the card after it."""
    done = subprocess.run([sys.executable, "-c", LOST], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    first, second, last = done.stdout.splitlines()
    assert first.endswith("failed: CUDA_ERROR_ILLEGAL_ADDRESS") and "cannot be used any more" in second, done.stdout
    assert last == "freed"
