"""Devices that are none: the reference backend under other names, with other memory, lacking some ops. They keep to
their own memory and complain when they are handed a tensor that lives elsewhere.
"""

from collections import Counter
from collections.abc import Callable, Collection

from pyggml.backend.base import Buffer, Bytes, Kind, Plan, Usage
from pyggml.backend.host import HostBuffer
from pyggml.backend.reference import ReferenceBackend, ReferenceDevice
from pyggml.graph import Graph
from pyggml.ops import Op
from pyggml.tensor import Tensor


class FakeBuffer(HostBuffer):
    """Counts what is written from outside; cannot copy from other devices. A fresh compute buffer is all NaN."""

    def set(self, tensor: Tensor, data: Bytes, offset: int = 0) -> None:
        assert isinstance(self.device, FakeDevice)
        self.device.written[tensor.name.rpartition("#")[2]] += 1
        super().set(tensor, data, offset)

    def copy(self, src: Tensor, dst: Tensor) -> bool:
        return src.buffer is not None and src.buffer.device is self.device and super().copy(src, dst)


class FakeDevice(ReferenceDevice):
    kind = Kind.GPU

    def __init__(
        self, name: str = "FAKE", free: int = 1 << 30, lacks: Collection[Op] = (), max_size: int = 1 << 40
    ) -> None:
        super().__init__()
        self.name = name
        self.free = free
        self.lacks = frozenset(lacks)
        self.max_size = max_size
        self.written: Counter[str] = Counter()
        self.plans = 0
        self.computed: list[int] = []  # nodes of each compute, in order
        self.buffers: list[FakeBuffer] = []

    def memory(self) -> tuple[int, int]:
        return self.free, self.free

    def why_not(self, node: Tensor) -> str | None:
        return f"{self.name} lacks {Op(node.op).name}" if node.op in self.lacks else super().why_not(node)

    def alloc_buffer(self, size: int, usage: Usage = Usage.ANY) -> HostBuffer:
        assert size <= self.max_size
        buffer = FakeBuffer.alloc(self, size, usage)
        if usage is Usage.COMPUTE:
            buffer.clear(0xFF)
        self.buffers.append(buffer)
        return buffer

    def open(self, n_threads: int | None = None) -> "FakeBackend":
        return FakeBackend(self)


class FakeBackend(ReferenceBackend):
    device: FakeDevice

    def plan(self, graph: Graph, *, cancelled: Callable[[], bool] | None = None, max_work: int | None = None) -> Plan:
        for node in graph.nodes:
            for tensor in (node, *node.src):
                if tensor is not None:
                    assert tensor.buffer is not None, f"{tensor} has no place"
                    assert tensor.buffer.device is self.device, f"{tensor} lives on {tensor.buffer.device.name}"
        self.device.plans += 1
        return super().plan(graph, cancelled=cancelled, max_work=max_work)

    def compute(self, plan: Plan) -> None:
        self.device.computed.append(len(plan.nodes))  # type: ignore[attr-defined]
        super().compute(plan)


__all__ = ["Buffer", "FakeBackend", "FakeBuffer", "FakeDevice"]
