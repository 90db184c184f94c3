"""The CPU backend: graphs are lowered once to a plan of step records, which compiled code then walks.

Owns devices, plans and the lowering's bookkeeping: work memory, barriers, kernels to compile. Knows no single op: each
family in kernels/cpu lowers its own.
"""

from __future__ import annotations

import copy
import importlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pyggml import jit
from pyggml.backend.base import Backend, Begun, Device, Kind, Plan, Usage, while_wanted
from pyggml.backend.hazards import Hazards, Memo, Span
from pyggml.backend.host import HostBuffer, default_threads, host_memory
from pyggml.backend.parts import cost_ns, parts
from pyggml.backend.spans import first_fit
from pyggml.backend.team import IndexFault, StepTable, Team
from pyggml.dtypes import GGMLType
from pyggml.errors import ComputeError, UnsupportedError, WorkMemoryError
from pyggml.graph import Graph
from pyggml.kernels.cpu import FAMILIES, FUSIONS, executor
from pyggml.ops import VIEW_OPS, Op, check
from pyggml.steps import MAX_OPERANDS, PLAN, STEP
from pyggml.tensor import Flag, Tensor

SMALL_STEPS = 4
LARGE_OPS = (Op.MUL_MAT, Op.MUL_MAT_ID, Op.OUT_PROD, Op.FLASH_ATTN_EXT)
SMALL_BYTES = 65536
"""A plan of so few steps with results of so few bytes is run by one thread."""


def _module(name: str) -> Any:
    return importlib.import_module(f"pyggml.kernels.cpu.{name}")


def _family(op: int) -> Any:
    name = FAMILIES.get(Op(op))
    return _module(name) if name else None


def _passing_nodes(graph: Graph, nodes: list[Tensor]) -> set[int]:
    """id() of each node whose result is read once, by the node behind it, and by nobody outside."""
    readers: dict[int, int] = {}
    for node in nodes:
        for s in node.src:
            if s is not None:
                root = id(s.view_src or s)
                readers[root] = readers.get(root, 0) + 1
    return {
        id(a)
        for a, b in itertools.pairwise(nodes)
        if readers.get(id(a)) == 1
        and graph.uses.get(id(a), 1) == 1
        and not a.flags & Flag.OUTPUT
        and a.view_src is None
        and any(s is a for s in b.src)
    }


class CPUDevice(Device):
    kind = Kind.CPU
    alignment = 64

    def __init__(self, name: str = "CPU", description: str = "") -> None:
        self.name = name
        self.description = description or f"{jit.target()[0]} ({jit.level()})"

    def memory(self) -> tuple[int, int]:
        return host_memory()

    def alloc_buffer(self, size: int, usage: Usage = Usage.ANY) -> HostBuffer:
        return HostBuffer.alloc(self, size, usage)

    def why_not(self, node: Tensor) -> str | None:
        family = _family(node.op)
        if family is None:
            return f"the CPU backend has no {Op(node.op).name}"
        reason: str | None = family.why_not(node)
        return reason

    def open(self, n_threads: int | None = None) -> CPUBackend:
        jit.prepare(
            [executor.RUN, executor.WORKER, executor.DISMISS, executor.SPIN]
        )  # together, where they are not there yet
        return CPUBackend(self, n_threads or default_threads())


class CPUPlan(Plan):
    """`small`: not worth waking other threads, such as the embedding rows of one token before remote layers."""

    def __init__(self, table: StepTable, nodes: list[Tensor], keep: list[Any]) -> None:
        self.table = table
        self.steps = table.steps
        self.small = len(nodes) <= SMALL_STEPS and sum(n.nbytes for n in nodes) <= SMALL_BYTES
        self.small = self.small and not any(n.op in LARGE_OPS for n in nodes)
        self.nodes = nodes  # the node of each step, to name it when it fails
        self.keep = keep  # memory that the steps point to


class CPUBackend(Backend):
    def __init__(self, device: CPUDevice, n_threads: int) -> None:
        self.device = device
        self.n_threads = n_threads
        self.team = Team(n_threads)
        self._teams = {n_threads: self.team}

    def plan(
        self, graph: Graph, *, cancelled: Callable[[], bool] | None = None, max_work: int | None = None
    ) -> CPUPlan:
        return self._lower(graph, cancelled).finish(self.team.status_address, max_work)

    def begin(self, graph: Graph) -> Begun:
        builder = self._lower(graph, None)
        return Begun(jit.prepare(builder.kernels()), lambda: builder.finish(self.team.status_address))

    def _lower(self, graph: Graph, cancelled: Callable[[], bool] | None) -> Builder:
        nodes = [n for n in graph.nodes if n.op not in VIEW_OPS and n.flags & Flag.COMPUTE and 0 not in n.ne]
        for node in while_wanted(nodes, cancelled):
            check(node)
            reason = self.device.why_not(node)
            if reason is not None:
                raise UnsupportedError(f"{self.device.name}: cannot compute {node.name!r}: {reason}")
        builder = Builder(self.n_threads)
        passing = _passing_nodes(graph, nodes)
        done: Tensor | None = None  # with the node before it
        for node, following in while_wanted(list(zip(nodes, [*nodes[1:], None], strict=False)), cancelled):
            if node is done:
                continue
            builder.node = node
            if following is not None and id(node) in passing:
                fusion = FUSIONS.get((Op(node.op), Op(following.op)))
                if fusion and _module(fusion).lower_pair(builder, node, following):
                    done = following
                    continue
            _family(node.op).lower(builder, node)
        return builder

    def compute(self, plan: Plan) -> None:
        assert isinstance(plan, CPUPlan)
        if not plan.nodes:
            return
        try:
            self.team.run(plan.table, plan.small)
        except IndexFault as fault:
            node = plan.nodes[fault.step]
            raise ComputeError(
                f"{Op(node.op).name} {node.name!r}: row number {fault.row}, there are {fault.limit} rows"
            ) from None

    def use_threads(self, n_threads: int) -> None:
        """Plans were made for `n_threads` of `open`, and so there is room for fewer."""
        assert 1 <= n_threads <= self.n_threads, (n_threads, self.n_threads)
        team = self._teams.get(n_threads)
        if team is None:
            team = self._teams[n_threads] = Team(n_threads, self.team)
        self.team = team

    def trim(self) -> None:
        for team in list(self._teams.values()):
            team.trim()

    def abort(self) -> None:
        self.team.abort()

    def close(self) -> None:
        for team in self._teams.values():
            team.close()


@dataclass
class Scratch:
    """Work memory of `size` bytes that lives from the first step that names it to the last.

    `per_thread`: each thread has a part of its own, so that steps may share it without meeting.
    """

    size: int
    per_thread: bool = False
    first: int = -1
    last: int = -1
    address: int = 0


class WorkTensor(Tensor):
    """An operand whose bytes are work memory. Its `data` is a number of its own, below 0, until the plan is finished."""

    __slots__ = ("scratch",)

    def __init__(self, dtype: GGMLType, ne: Sequence[int]) -> None:
        super().__init__(dtype, ne)
        self.scratch = Scratch(self.nbytes)


@dataclass
class _Step:
    spec: jit.Spec
    node: Tensor
    dst: Tensor | None
    src: tuple[Tensor | None, ...]
    params: bytes
    ints: tuple[int, ...]
    scratch: tuple[Scratch, ...]
    held: tuple[Scratch, ...]  # those and the operands' own
    calls: tuple[jit.Spec, ...] = ()
    sync: bool = False


@dataclass
class Builder:
    """What lowering a graph gathers: steps, their work memory, and where threads must meet."""

    n_threads: int
    steps: list[_Step] = field(default_factory=list)
    node: Tensor | None = None
    _hazards: Hazards = field(default_factory=Hazards)
    _memo: Memo = field(default_factory=Memo)
    _made: int = 0

    def step(
        self,
        spec: jit.Spec,
        dst: Tensor | None,
        src: Sequence[Tensor | None] = (),
        *,
        ints: Sequence[int] = (),
        reads: Sequence[Scratch] = (),
        writes: Sequence[Scratch] = (),
        calls: Sequence[jit.Spec] = (),
    ) -> None:
        """Add a step. `dst` is written, `src` are read; `writes` + `reads` are at most two pieces of work memory,
        which the kernel finds in this order in its `scratch`. The threads meet before it only if it needs what a
        step since their last meeting wrote, or would overwrite what one of those reads. `calls`: at most three kernels whose
        addresses the step's own kernel finds in its record."""
        assert self.node is not None and len(src) <= MAX_OPERANDS and len(ints) <= 8
        scratch = (*writes, *reads)
        assert len(scratch) <= 2 and len(calls) <= 3
        made = [dst.scratch] if isinstance(dst, WorkTensor) else []
        held = (*scratch, *made, *(s.scratch for s in src if isinstance(s, WorkTensor)))
        write = [_span(dst)] if dst is not None and not made else []
        read = [_span(s) for s in src if s is not None and not isinstance(s, WorkTensor)]
        touched = {id(s) for s in held if not s.per_thread}
        if self._hazards.in_the_way(read, write, touched):
            self.barrier()
        for span in write:
            self._memo.wrote(*span)
        self._hazards.add(read, write, (id(s) for s in (*writes, *made)))
        for s in held:
            s.first = len(self.steps) if s.first < 0 else s.first
            s.last = len(self.steps)
        self.steps.append(
            _Step(spec, self.node, dst, tuple(src), self.node.op_params, tuple(ints), scratch, held, tuple(calls))
        )

    def barrier(self) -> None:
        """Let the threads meet behind the last step."""
        if self.steps:
            self.steps[-1].sync = True
        self._hazards.met()

    def remember(self, key: Any, value: Any, source: Tensor) -> None:
        """Keep what was made of `source` until a step writes to the source's memory."""
        self._memo.remember(key, value, (0, 0) if isinstance(source, WorkTensor) else _span(source))

    def remembered(self, key: Any) -> Any:
        """What was kept under `key`; None if there is nothing, or its source has changed since."""
        return self._memo.remembered(key)

    def scratch(self, size: int) -> Scratch:
        """`size` bytes of work memory."""
        return Scratch(size)

    def work_tensor(self, dtype: GGMLType, ne: Sequence[int]) -> WorkTensor:
        """Work memory as an operand, dense."""
        made = WorkTensor(dtype, ne)
        self._made += 1
        made.data = -self._made
        return made

    def seen_as(self, t: Tensor, ne: tuple[int, int, int, int], nb: tuple[int, int, int, int]) -> Tensor:
        """The bytes of `t` in another shape."""
        view = copy.copy(t)
        view.ne, view.nb = ne, nb
        return view

    def thread_scratch(self, size: int) -> Scratch:
        """`size` bytes for each thread, thread i at i * (size rounded up to 64)."""
        return Scratch((size + 63) // 64 * 64 * self.n_threads, per_thread=True)

    def kernels(self) -> list[jit.Spec]:
        """What the steps run, each once."""
        return list(dict.fromkeys(spec for s in self.steps for spec in (s.spec, *s.calls)))

    def finish(self, status: int, max_work: int | None = None) -> CPUPlan:
        arena_size, record_size = _place(self.steps), PLAN.itemsize + len(self.steps) * STEP.itemsize
        work = arena_size + record_size + 128
        if max_work is not None and work > max_work:
            raise WorkMemoryError(work, max_work)
        jit.ensure(self.kernels())
        arena, table = _zeros(arena_size), StepTable(len(self.steps))
        for i, s in enumerate(self.steps):
            r = table.steps[i]
            r["kernel"], r["sync"], r["index"] = jit.address(s.spec), s.sync, i
            r["parts"] = parts(cost_ns(s.node, s.dst, s.src), self.n_threads)
            r["params"] = np.frombuffer(s.params, "<i4")
            r["ints"][: len(s.ints)] = s.ints
            r["calls"][: len(s.calls)] = [jit.address(spec) for spec in s.calls]
            for j, scratch in enumerate(s.scratch):
                r["scratch"][j] = arena.ctypes.data + scratch.address
                if scratch.per_thread:
                    r["thread_bytes"] = scratch.size // self.n_threads
            for t in (s.dst, *s.src):
                if isinstance(t, WorkTensor):
                    t.data = int(arena.ctypes.data) + t.scratch.address
            if s.dst is not None:
                _operand(r["dst"], s.dst)
            for j, t in enumerate(s.src):
                if t is not None:
                    _operand(r["src"][j], t)
        buffers = [t.buffer for s in self.steps for t in (s.dst, *s.src) if t is not None]
        plan = CPUPlan(table.sealed(status), [s.node for s in self.steps], [arena, list(dict.fromkeys(buffers))])
        plan.nbytes = work
        return plan


def _operand(record: Any, tensor: Tensor) -> None:
    record["data"], record["ne"], record["nb"] = tensor.data, tensor.ne, tensor.nb


def _span(tensor: Tensor) -> Span:
    return tensor.data, tensor.data + tensor.nbytes


def _place(steps: list[_Step]) -> int:
    """Give each piece of work memory an address in one arena; -> bytes of it. Pieces share memory when the threads meet
    between the last step of the one and the first step of the other."""
    meeting = [0]  # barriers before each step
    for step in steps:
        meeting.append(meeting[-1] + step.sync)
    pieces = sorted({id(s): s for step in steps for s in step.held}.values(), key=lambda s: s.first)
    addresses, size = first_fit(((s.size, meeting[s.first], meeting[s.last]) for s in pieces), 64)
    for piece, address in zip(pieces, addresses, strict=True):
        piece.address = address
    return size


def _zeros(size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Bytes at a multiple of 64."""
    raw = np.zeros(size + 64, np.uint8)
    return raw[-raw.ctypes.data % 64 :][:size]
