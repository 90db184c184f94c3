"""The CPU backend: graphs are lowered once to a plan of step records, which compiled code then walks.

Owns the device and the walk over a graph's nodes; what is gathered on the way is
lowering/cpu.py's. Knows no single op: each family in kernels/cpu lowers its own.
"""

from __future__ import annotations

import functools
import importlib
import itertools
from collections.abc import Callable
from typing import Any

from pyggml import jit
from pyggml.backend.base import Backend, Begun, Device, Kind, Plan, Usage, while_wanted
from pyggml.backend.host import HostBuffer, default_threads, host_memory
from pyggml.backend.thread_pool import IndexFault, ThreadPool
from pyggml.errors import ComputeError, UnsupportedError
from pyggml.graph import Graph
from pyggml.kernels.cpu import FAMILIES, FUSIONS, executor
from pyggml.lowering.cpu import Builder, Lowered
from pyggml.lowering.layers import LayerBuilder
from pyggml.ops import VIEW_OPS, Forms, Op, check, form_of
from pyggml.ops.overlap import check_overlap
from pyggml.tensor import Flag, Tensor

SMALL_STEPS = 4
OUTPUT = int(Flag.OUTPUT)
LARGE_OPS = (Op.MUL_MAT, Op.MUL_MAT_ID, Op.OUT_PROD, Op.FLASH_ATTN_EXT)
SMALL_BYTES = 65536
"""A plan of so few steps with results of so few bytes is run by one thread."""


class CPUPlan(Plan):
    """`small`: not worth waking other threads, such as the embedding rows of one token before remote layers."""

    def __init__(self, lowered: Lowered) -> None:
        nodes = lowered.nodes
        self.table = lowered.table
        self.steps = lowered.table.steps
        self.nbytes = lowered.nbytes
        self.small = len(self.steps) <= SMALL_STEPS and sum(n.nbytes for n in nodes) <= SMALL_BYTES
        self.small = self.small and not any(n.op in LARGE_OPS for n in nodes)
        self.nodes = nodes
        self._where = lowered.where
        self.keep = lowered.keep

    def name(self, step: int) -> str:
        """Of what a step computes."""
        number, where = self._where(step)
        return f"{Op(self.nodes[number].op).name} {self.nodes[number].name!r}{where}"


@functools.cache
def _module(name: str) -> Any:
    return importlib.import_module(name if "." in name else f"pyggml.kernels.cpu.{name}")


def _family(op: int) -> Any:
    name = FAMILIES.get(op)  # type: ignore[call-overload]  # an Op's hash is its number's
    return _module(name) if name else None


def _passing_nodes(graph: Graph, nodes: list[Tensor]) -> set[int]:
    """id() of each node whose result is read once, by the node behind it, and by nobody outside; of those that may be fused."""
    readers = {
        id(a): 0
        for a, b in itertools.pairwise(nodes)
        if (a.op, b.op) in FUSIONS and not a.flags & OUTPUT and a.view_src is None and any(s is a for s in b.src)
    }
    if readers:
        for node in nodes:
            for s in node.src:
                if s is not None and (key := id(s.view_src or s)) in readers:
                    readers[key] += 1
    return {key for key, n in readers.items() if n == 1 and (graph.closed or graph.uses.get(key, 1) == 1)}


class CPUDevice(Device):
    """This machine's processor, at one level of instructions."""

    kind = Kind.CPU
    alignment = 64

    def __init__(self, name: str = "CPU", description: str = "") -> None:
        self.name = name
        self.description = description or f"{jit.target()[0]} ({jit.level()})"
        self._computed = Forms()  # that why_not had nothing against
        self._supported = Forms()

    def memory(self) -> tuple[int, int]:
        return host_memory()

    def alloc_buffer(self, size: int, usage: Usage = Usage.ANY) -> HostBuffer:
        return HostBuffer.alloc(self, size, usage)

    def why_not(self, node: Tensor) -> str | None:
        form = form_of(node)
        if form in self._computed:
            return None
        family = _family(node.op)
        if family is None:
            return f"the CPU backend has no {Op(node.op).name}"
        reason: str | None = family.why_not(node)
        if reason is None:
            self._computed.add(form)
        return reason

    def supports_op(self, node: Tensor) -> bool:
        form = form_of(node) if node.buffer is None else None  # that of a placed node does not tell all
        if form is None or form not in self._supported:
            if not super().supports_op(node):
                return False
            if form is not None:
                self._supported.add(form)
        return True

    def open(self, n_threads: int | None = None) -> CPUBackend:
        jit.prepare(
            [executor.RUN, executor.WORKER, executor.DISMISS, executor.SPIN]
        )  # together, where they are not there yet
        return CPUBackend(self, n_threads or default_threads())


class CPUBackend(Backend):
    """Lowers graphs to plans, which a pool of threads runs."""

    repeats = True

    def __init__(self, device: CPUDevice, n_threads: int) -> None:
        self.device = device
        self.n_threads = n_threads
        self.pool = ThreadPool(n_threads)
        self._pools = {n_threads: self.pool}

    def plan(
        self, graph: Graph, *, cancelled: Callable[[], bool] | None = None, max_work: int | None = None
    ) -> CPUPlan:
        return CPUPlan(self._lower(graph, cancelled).finish(self.pool.status_address, max_work))

    def begin(self, graph: Graph) -> Begun:
        builder = self._lower(graph, None, asked=True)
        return Begun(
            jit.prepare(builder.kernels()), lambda: CPUPlan(builder.finish(self.pool.status_address, clear=False))
        )

    def _lower(self, graph: Graph, cancelled: Callable[[], bool] | None, asked: bool = False) -> Builder:
        """`asked`: whether the device supports each node, which leaves the addresses to be checked."""
        compute = int(Flag.COMPUTE)
        nodes = [n for n in graph.nodes if n.op not in VIEW_OPS and n.flags & compute and 0 not in n.ne]
        for node in while_wanted([] if graph.proved else nodes, cancelled):
            if asked:
                check_overlap(node)
                continue
            check(node)
            reason = self.device.why_not(node)
            if reason is not None:
                raise UnsupportedError(f"{self.device.name}: cannot compute {node.name!r}: {reason}")
        builder = Builder(self.n_threads) if graph.repeats is None else LayerBuilder(self.n_threads, graph)
        passing = _passing_nodes(graph, nodes)
        done: Tensor | None = None  # with the node before it
        for node, following in while_wanted(list(zip(nodes, [*nodes[1:], None], strict=False)), cancelled):
            if node is done:
                continue
            builder.node = node
            if following is not None and id(node) in passing:
                fusion = FUSIONS[node.op, following.op]  # type: ignore[index]  # an Op's hash is its number's
                if _module(fusion).lower_pair(builder, node, following):
                    done = following
                    continue
            _family(node.op).lower(builder, node)
        builder.check()
        return builder

    def compute(self, plan: Plan) -> None:
        assert isinstance(plan, CPUPlan)
        if not plan.nodes:
            return
        try:
            self.pool.run(plan.table, plan.small)
        except IndexFault as fault:
            raise ComputeError(
                f"{plan.name(fault.step)}: row index {fault.row}, there are {fault.limit} rows"
            ) from None

    def use_threads(self, n_threads: int) -> None:
        """Plans were made for `n_threads` of `open`, and so there is room for fewer."""
        assert 1 <= n_threads <= self.n_threads, (n_threads, self.n_threads)
        pool = self._pools.get(n_threads)
        if pool is None:
            pool = self._pools[n_threads] = ThreadPool(n_threads, self.pool)
        self.pool = pool

    def trim(self) -> None:
        for pool in list(self._pools.values()):
            pool.trim()

    def abort(self) -> None:
        self.pool.abort()

    def close(self) -> None:
        for pool in self._pools.values():
            pool.close()
