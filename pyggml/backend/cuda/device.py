"""The CUDA backend: devices, buffers and the run of plans, over any driver with the interface of `driver.GPU`.

Owns what the contract of backend/base.py asks for.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import struct
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import numpy as np

from pyggml.backend.base import Backend, Begun, Buffer, Bytes, Device, Kind, Plan, Usage, while_wanted
from pyggml.backend.cuda.driver import GPU
from pyggml.backend.cuda.plan import CudaPlan
from pyggml.backend.cuda.staging import Staging
from pyggml.errors import ComputeError, DeviceError, UnsupportedError, WorkMemoryError
from pyggml.graph import Graph
from pyggml.kernels.cuda import FAMILIES, FUSIONS, TAKEN, TAKING
from pyggml.kernels.cuda.layout import alignment
from pyggml.lowering.cuda import STATUS_BYTES, Builder
from pyggml.lowering.cuda_layers import LayerBuilder
from pyggml.lowering.together import together
from pyggml.ops import VIEW_OPS, Forms, Op, check, form_of
from pyggml.ops.overlap import check_overlap
from pyggml.tensor import Flag, Tensor


@functools.cache
def _module(name: str) -> Any:
    return importlib.import_module(f"pyggml.kernels.cuda.{name}")


SLICE = 0.05
"""Seconds of the GPU's time that are handed over before it is asked again whether they are wanted, and others get at it."""
MOST_LAUNCHES = 256  # in a slice


class CudaDevice(Device):
    """`lock` is held by whoever speaks to the GPU: its one stream keeps everything in order."""

    kind = Kind.GPU
    backend_name = "CUDA"
    shares_plans = True
    few_shapes = True
    alignment = 256

    def __init__(self, gpu: GPU) -> None:
        self.gpu = gpu
        self.name = f"CUDA{gpu.number}"
        self.description = gpu.name
        self.lock = threading.RLock()
        self._computed = Forms()  # that why_not had nothing against
        self.staging = Staging(gpu)
        self.retired: SimpleQueue[_RetiredPlan] = SimpleQueue()  # of plans that nobody holds any more
        self.events: list[Any] = []  # that no backend uses
        self.clock: Callable[[], float] = time.monotonic

    def memory(self) -> tuple[int, int]:
        with self.lock:
            return self.gpu.memory()

    @property
    def lost(self) -> str | None:
        return self.gpu.lost

    def alloc_buffer(self, size: int, usage: Usage = Usage.ANY) -> CudaBuffer:
        return CudaBuffer(self, size, usage)

    def take(self, size: int) -> int:
        """Address of so many bytes; `lock` is held. Raises DeviceError when they are not there even without what retired
        plans hold."""
        try:
            return self.gpu.alloc(size)
        except DeviceError:
            if not self.free_retired():
                raise
            return self.gpu.alloc(size)

    def free_retired(self) -> int:
        """Free what retired plans hold, which needs a time when no graph is being captured; `lock` is held. -> how many."""
        n = 0
        with contextlib.suppress(Empty):
            while True:
                plan = self.retired.get_nowait()
                n += 1
                if plan.graph is not None:
                    self.gpu.drop(plan.graph)
                self.gpu.free(plan.memory)
        return n

    def why_not(self, node: Tensor) -> str | None:
        form = form_of(node)
        if form in self._computed:
            return None
        name = FAMILIES.get(Op(node.op))
        if name is None:
            return f"the CUDA backend has no {Op(node.op).name}"
        reason: str | None = _module(name).why_not(node)
        if reason is None:
            self._computed.add(form)
        return reason

    def open(self, n_threads: int | None = None) -> CudaBackend:
        return CudaBackend(self)


class CudaBuffer(Buffer):
    """Bytes in a GPU's memory."""

    device: CudaDevice

    def __init__(self, device: CudaDevice, size: int, usage: Usage) -> None:
        assert size >= 0, size
        self.device, self.size, self.usage = device, size, usage
        with device.lock:
            self.base = device.take(size)
            try:
                if size:  # the driver gives out memory as it came back, with what another client of a server left there
                    device.gpu.fill(self.base, 0, size)
            except DeviceError:
                device.gpu.free(self.base)
                raise

    def _at(self, tensor: Tensor, offset: int, size: int) -> int:
        start = tensor.data - self.base + offset
        assert offset >= 0 and size >= 0 and offset + size <= tensor.nbytes, (tensor, offset, size)
        assert start >= 0 and start + size <= self.size, (tensor, start, size, self.size)
        return self.base + start

    def set(self, tensor: Tensor, data: Bytes, offset: int = 0) -> None:
        content = np.frombuffer(data, np.uint8)
        with self.device.lock:
            self.device.staging.write(self._at(tensor, offset, content.size), content)

    def get(self, tensor: Tensor, offset: int = 0, size: int | None = None) -> bytes:
        size = tensor.nbytes - offset if size is None else size
        with self.device.lock:
            return self.device.staging.read(self._at(tensor, offset, size), size)

    def memset(self, tensor: Tensor, value: int, offset: int = 0, size: int | None = None) -> None:
        size = tensor.nbytes - offset if size is None else size
        at = self._at(tensor, offset, size)
        if size:
            with self.device.lock:
                self.device.gpu.fill(at, value, size)

    def clear(self, value: int) -> None:
        if self.size:
            with self.device.lock:
                self.device.gpu.fill(self.base, value, self.size)

    def copy(self, src: Tensor, dst: Tensor) -> bool:
        if not isinstance(src.buffer, CudaBuffer) or src.buffer.device is not self.device:
            return False
        size = src.nbytes
        source, target = src.buffer._at(src, 0, size), self._at(dst, 0, size)
        if size:
            with self.device.lock:
                self.device.gpu.copy(target, source, size)
        return True

    def free(self) -> None:
        if self.base:
            with self.device.lock:
                self.device.gpu.free(self.base)
        self.base = self.size = 0


class CudaBackend(Backend):
    """Lowers graphs to plans of launches, which run on the one stream of a GPU."""

    device: CudaDevice
    repeats = True

    def __init__(self, device: CudaDevice) -> None:
        self.device = device
        self.aborted = False
        self._events: list[Any] = []  # two, that mark the ends of slices by turns

    def plan(self, graph: Graph, *, cancelled: Callable[[], bool] | None = None, max_work: int | None = None) -> Plan:
        return self._finish(*self._lower(graph, cancelled), graph, max_work)

    def begin(self, graph: Graph) -> Begun:
        lowered = self._lower(graph, None, asked=True)
        return Begun([], lambda: self._finish(*lowered, graph))

    def _lower(
        self, graph: Graph, cancelled: Callable[[], bool] | None, asked: bool = False
    ) -> tuple[Builder, list[Tensor]]:
        """The launches of a graph, and its nodes in the order of their numbers. `asked`: whether the device supports each
        node, which leaves the addresses to be checked."""
        nodes = [n for n in graph.nodes if n.op not in VIEW_OPS and n.flags & Flag.COMPUTE and 0 not in n.ne]
        for node in while_wanted(nodes, cancelled):
            if asked:
                check_overlap(node)
            elif not graph.proved:
                check(node)
                reason = self.device.why_not(node)
                if reason is not None:
                    raise UnsupportedError(f"{self.device.name}: cannot compute {node.name!r}: {reason}")
            for t in (node, *node.src):
                if t is not None and t.data % alignment(t.type):
                    raise UnsupportedError(
                        f"{self.device.name}: {t.name!r} lies at {t.data:#x}, not a multiple of {alignment(t.type)}"
                    )
        gpu = self.device.gpu
        nodes = together(nodes)
        card = gpu.cc, gpu.multiprocessors, gpu.shared_limit
        builder = Builder(*card) if graph.repeats is None else LayerBuilder(*card, graph, nodes)
        builder.expect(nodes, graph.ends)
        self.lower(builder, graph, nodes, cancelled)
        builder.check()
        return builder, nodes

    def _finish(self, builder: Builder, nodes: list[Tensor], graph: Graph, max_work: int | None = None) -> Plan:
        """Raises WorkMemoryError, DeviceError."""
        gpu = self.device.gpu
        size = builder.place_scratch()
        if max_work is not None and size > max_work:
            raise WorkMemoryError(size, max_work)
        for spec in dict.fromkeys(launch.head.spec for launch in builder.launches):
            gpu.load(spec)  # may compile for seconds, while others use the GPU
        with self.device.lock:
            self.device.free_retired()
            memory = self.device.take(size)
            try:
                self.device.staging.write(memory, builder.constants())
                plan = _OwnedPlan(self.device, builder, nodes, memory)
                plan.nbytes = size
                return plan
            except BaseException:
                gpu.free(memory)
                raise

    def lower(
        self, builder: Builder, graph: Graph, nodes: list[Tensor], cancelled: Callable[[], bool] | None = None
    ) -> None:
        """Turn nodes into launches; runs of nodes that one kernel computes together are tried first."""
        end = 0  # of the group that the node before was in
        inside = functools.partial(only_inside, graph)
        for i in while_wanted(range(len(nodes)), cancelled):
            if i < end:
                continue
            group = nodes[i : i + 1]
            builder.begin_group(group, i)
            taking = TAKING.get(nodes[i].op)  # type: ignore[call-overload]  # an Op's hash is its number's
            taken = 0
            if taking is not None:
                taken = _module(taking).take(builder, nodes[i : i + builder.reach(i, TAKEN)], inside)
            if taken:
                group = nodes[i : i + taken]
                builder.begin_group(group, i)
            elif not self._fused(builder, graph, nodes, i):
                _module(FAMILIES[Op(nodes[i].op)]).lower(builder, nodes[i])
            else:
                group = nodes[i : builder.number + 1]
            builder.end_group(group)
            end = i + len(group)

    def _fused(self, builder: Builder, graph: Graph, nodes: list[Tensor], i: int) -> bool:
        """Whether a fusion begins with node i: it is lowered then, and the builder's number is its last node's."""
        for fusion in FUSIONS.get(nodes[i].op, ()):  # type: ignore[call-overload]
            some = nodes[i : i + len(fusion.ops)]
            if tuple([n.op for n in some]) == fusion.ops and only_inside(graph, some):
                builder.begin_group(some, i)
                if _module(fusion.module).lower_fused(builder, some):
                    return True
                builder.begin_group(nodes[i : i + 1], i)
        return False

    def compute(self, plan: Plan) -> None:
        assert isinstance(plan, CudaPlan)
        device, gpu = self.device, self.device.gpu
        with device.lock:
            device.free_retired()
            self.aborted = False
            if not plan.steps:
                return
            began, at_once = device.clock(), plan.replay()
        if not at_once:
            self._launch_by_slices(plan)
        number = 0
        with device.lock:
            if plan.reports:
                number, row, limit = struct.unpack("<iqi", device.staging.read(plan.memory, STATUS_BYTES))
                if number:
                    gpu.fill(plan.memory, 0, STATUS_BYTES)
            else:
                gpu.synchronize()
        if not at_once:
            plan.seconds = device.clock() - began
        if self.aborted:
            raise ComputeError("aborted")
        if number:
            raise ComputeError(f"{plan.name(number - 1)}: row index {row}, there are {limit} rows")

    def _launch_by_slices(self, plan: CudaPlan) -> None:
        """Two slices at most are under way, so that the GPU always has the next one and nobody else waits for long: the
        lock is free between them. A slice has as many launches as take about SLICE, as far as those before tell."""
        device, gpu = self.device, self.device.gpu
        if not self._events:
            with device.lock:
                self._events = [device.events.pop() if device.events else gpu.event() for _ in range(2)]
        at, number, before = 0, 0, device.clock()
        while at < len(plan.steps) and not self.aborted:
            event = self._events[number % 2]
            if number >= 2:
                gpu.wait(event)
                now = device.clock()
                if now - before < SLICE / 8:
                    plan.slice = min(2 * plan.slice, MOST_LAUNCHES)
                elif now - before > SLICE / 2:
                    plan.slice = max(plan.slice // 2, 1)
                before = now
            with device.lock:
                plan.launch(at, at + plan.slice)
                gpu.record(event)
            at, number = at + plan.slice, number + 1

    def synchronize(self) -> None:
        with self.device.lock:
            self.device.gpu.synchronize()

    def abort(self) -> None:
        """What the GPU has been handed runs to its end, two slices or a graph that was quick before; the results are not to
        be used."""
        self.aborted = True

    def close(self) -> None:
        with self.device.lock:
            self.device.free_retired()
            self.device.events += self._events
            self._events = []


class _RetiredPlan(NamedTuple):
    """What a plan that nobody holds any more leaves on the GPU."""

    graph: Any
    memory: int


class _OwnedPlan(CudaPlan):
    """A plan that leaves its memory to the device in the end: at once is no time, a graph may be being captured."""

    def __init__(self, device: CudaDevice, builder: Builder, nodes: list[Tensor], memory: int) -> None:
        super().__init__(device.gpu, builder, nodes, memory)
        self.device = device

    def __del__(self) -> None:
        device = getattr(self, "device", None)
        if device is not None:  # not where __init__ failed
            device.retired.put(_RetiredPlan(self.graph, self.memory))


def only_inside(graph: Graph, group: list[Tensor]) -> bool:
    """Whether all results of these nodes but the last are read within the group alone."""
    read = [s for other in group for s in other.src]
    for node in group[:-1]:
        inside = sum(s is node for s in read)
        for view in {
            id(s): s for s in read if s is not None and s.op in VIEW_OPS and s.src and s.src[0] is node
        }.values():
            n = sum(s is view for s in read)
            inside += graph.uses.get(id(view), n) == n and not view.flags & Flag.OUTPUT
        if not inside or graph.uses.get(id(node), inside) != inside:
            return False
        if node.flags & Flag.OUTPUT or node.view_src is not None:
            return False
    return True
