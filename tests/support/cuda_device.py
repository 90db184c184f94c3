"""A CUDA device whose GPU is emulated, and whose kernels may touch the operands of the plan that runs and nothing else.

Owns that narrowing.
"""

from typing import Any

from cuda_emulator import EmulatedGPU

from pyggml.backend.base import Plan
from pyggml.backend.cuda.device import CudaBackend, CudaDevice
from pyggml.backend.cuda.plan import CudaPlan
from pyggml.graph import Graph
from pyggml.lowering.cuda import Builder
from pyggml.tensor import Tensor


class EmulatedDevice(CudaDevice):
    gpu: EmulatedGPU

    def __init__(self, gpu: EmulatedGPU | None = None, **options: Any) -> None:
        super().__init__(gpu or EmulatedGPU(**options))
        self.clock = lambda: 0.0  # the emulator is slow, what it stands for is not

    def open(self, n_threads: int | None = None) -> "EmulatedBackend":
        return EmulatedBackend(self)


class EmulatedBackend(CudaBackend):
    device: EmulatedDevice

    def _finish(self, builder: Builder, nodes: list[Tensor], graph: Graph, max_work: int | None = None) -> Plan:
        plan = super()._finish(builder, nodes, graph, max_work)
        assert isinstance(plan, CudaPlan)
        tensors = {id(t): t for n in plan.nodes for t in (n, *n.src) if t is not None and t.nbytes}
        if graph.repeats is not None:  # the layers that others stand for have operands too
            tensors |= {id(t): t for of_layer in graph.repeats.leafs.tensors for t in of_layer if t.nbytes}
        gpu = self.device.gpu
        memory = (plan.memory, plan.memory + gpu.allocations[plan.memory].size - 256)
        plan.allowed = [memory, *{(t.data, t.data + t.nbytes) for t in tensors.values()}]  # type: ignore[attr-defined]
        return plan

    def compute(self, plan: Plan) -> None:
        gpu = self.device.gpu
        gpu.allowed = plan.allowed  # type: ignore[attr-defined]
        try:
            super().compute(plan)
        finally:
            gpu.allowed = None
