"""What lowering a graph to CPU steps gathers: the steps, their work memory, the barriers between them; and the records made of it.

Knows no single op: each family in kernels/cpu lowers its own through `Builder`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pyggml import jit
from pyggml.dtypes import SIZES, GGMLType
from pyggml.errors import WorkMemoryError
from pyggml.kernels.cpu.step_args import MAX_ARGS, StepArgs, packed
from pyggml.lowering.hazards import Hazards, Memo, Span
from pyggml.lowering.parts import cost_ns, parts
from pyggml.lowering.spans import first_fit
from pyggml.lowering.table import FIRST_OPERAND, STEP_HEAD, STEP_OPERAND, StepTable, aligned_bytes
from pyggml.steps import MAX_OPERANDS, OPERAND, PLAN, STEP
from pyggml.tensor import Tensor

NOTHING = (0,) * 8


class Lowered(NamedTuple):
    """A graph as steps, ready to run.

    table   their records
    nodes   the node of each step that was lowered
    where   number of a step of the table -> the number of the step that was lowered for it, and what to add to the name of its node
    keep    memory that the steps point to
    nbytes  work memory and records
    """

    table: StepTable
    nodes: list[Tensor]
    where: Callable[[int], tuple[int, str]]
    keep: list[Any]
    nbytes: int


@dataclass(slots=True, eq=False)
class Scratch:
    """Work memory of `size` bytes that lives from the first step that names it to the last.

    `per_thread`: each thread has a part of its own, so that steps may share it without a barrier.
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


@dataclass(slots=True, eq=False)
class _Step:
    spec: jit.Spec
    node: Tensor
    dst: Tensor | None
    src: tuple[Tensor | None, ...]
    ints: tuple[int, ...]
    scratch: tuple[Scratch, ...]
    held: Sequence[Scratch]  # those and the operands' own
    kernels: tuple[int, ...]  # numbers of the step's own and of those that it calls
    sync: bool = False


@dataclass
class Builder:
    """What lowering a graph gathers: steps, their work memory, and the barriers between them."""

    n_threads: int
    steps: list[_Step] = field(default_factory=list)
    node: Tensor | None = None
    _hazards: Hazards = field(default_factory=Hazards)
    _memo: Memo = field(default_factory=Memo)
    _made: int = 0
    _kernels: dict[jit.Spec, int] = field(default_factory=dict)  # what the steps run, in the order of their first use

    def step(
        self,
        spec: jit.Spec,
        dst: Tensor | None,
        src: Sequence[Tensor | None] = (),
        *,
        args: StepArgs = (),
        reads: Sequence[Scratch] = (),
        writes: Sequence[Scratch] = (),
        calls: Sequence[jit.Spec] = (),
    ) -> None:
        """Add a step. `dst` is written, `src` are read; `writes` + `reads` are at most two pieces of work memory,
        which the kernel finds in this order in its `scratch`. The threads meet before it only if it needs what a
        step since their last meeting wrote, or would overwrite what one of those reads. `calls`: at most three kernels whose
        addresses the step's own kernel finds in its record. `args`: an instance of the class that stands beside the kernel."""
        node, steps, hazards = self.node, self.steps, self._hazards
        assert node is not None and len(src) <= MAX_OPERANDS and len(args) <= MAX_ARGS
        scratch = (*writes, *reads)
        assert len(scratch) <= 2 and len(calls) <= 3
        held, written, read, write = list(scratch), [id(s) for s in writes] if writes else [], [], []
        if dst is not None:
            if isinstance(dst, WorkTensor):
                held.append(dst.scratch)
                written.append(id(dst.scratch))
            else:
                low = dst.data
                write.append((low, low + dst.nbytes))
        for t in src:
            if t is not None:
                if isinstance(t, WorkTensor):
                    held.append(t.scratch)
                else:
                    low = t.data
                    read.append((low, low + t.nbytes))
        number = len(steps)
        shared: Sequence[int] = ()
        if held:
            shared = [id(s) for s in held if not s.per_thread]
            for s in held:
                if s.first < 0:
                    s.first = number
                s.last = number
        if hazards.in_the_way(read, write, shared):
            self.barrier()
        for low, high in write:
            self._memo.wrote(low, high)
        hazards.add(read, write, written)
        kernels = self._kernels
        run = kernels.setdefault(spec, len(kernels))
        called = (run, *[kernels.setdefault(s, len(kernels)) for s in calls]) if calls else (run,)
        given = packed(args) if args else ()
        steps.append(_Step(spec, node, dst, tuple(src), given, scratch, held, called))

    def barrier(self) -> None:
        """A barrier behind the last step."""
        if self.steps:
            self.steps[-1].sync = True
        self._hazards.barrier()

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

    def thread_scratch(self, size: int) -> Scratch:
        """`size` bytes for each thread, thread i at i * (size rounded up to 64)."""
        return Scratch((size + 63) // 64 * 64 * self.n_threads, per_thread=True)

    def kernels(self) -> list[jit.Spec]:
        """What the steps run, each once."""
        return list(self._kernels)

    def finish(self, status: int, max_work: int | None = None, *, clear: bool = True) -> Lowered:
        """`status`: the address that kernels report to. `clear`: whether work memory is zero in the beginning; no kernel asks for
        that, as each run finds what the last one left. Raises WorkMemoryError for more than `max_work` bytes."""
        arena_size, record_size = self.place(), PLAN.itemsize + self.count() * STEP.itemsize
        work = arena_size + record_size + 128
        if max_work is not None and work > max_work:
            raise WorkMemoryError(work, max_work)
        jit.ensure(self.kernels())
        arena = aligned_bytes(arena_size, clear)
        table = self.records(int(arena.ctypes.data), status).headed(status)
        return Lowered(table, [s.node for s in self.steps], self.where(), [arena, self.buffers()], work)

    def check(self) -> None:
        """Asked when all nodes are lowered."""

    def place(self) -> int:
        """Give each piece of work memory an address in one arena; -> bytes of it. Pieces share memory when a barrier is
        between the last step of the one and the first step of the other."""
        barriers = [0]  # before each step
        for step in self.steps:
            barriers.append(barriers[-1] + step.sync)
        pieces = sorted({id(s): s for step in self.steps for s in step.held}.values(), key=lambda s: s.first)
        addresses, size = first_fit(((s.size, barriers[s.first], barriers[s.last]) for s in pieces), 64)
        for piece, address in zip(pieces, addresses, strict=True):
            piece.address = address
        return size

    def count(self) -> int:
        """Of the plan's steps."""
        return len(self.steps)

    def where(self) -> Callable[[int], tuple[int, str]]:
        """-> f(number of a step of the plan): the number of the step that was lowered for it, and what to add to the name of
        its node."""
        return lambda number: (number, "")

    def buffers(self) -> list[Any]:
        """All that the steps' operands lie in."""
        return list({id(t.buffer): t.buffer for s in self.steps for t in (s.dst, *s.src) if t is not None}.values())

    def records(self, arena: int, status: int) -> StepTable:
        """The steps' records. `arena`: the address of the work memory."""
        table, n_threads = StepTable(len(self.steps)), self.n_threads
        if self.steps:
            self.steps[-1].sync = True  # what runs them waits for all
        for s in self.steps:
            for t in (s.dst, *s.src):
                if isinstance(t, WorkTensor):
                    t.data = arena + t.scratch.address
        addresses = [jit.address(spec) for spec in self._kernels]
        memory, at, due = memoryview(table.bytes), 0, 0  # type: ignore[arg-type]
        put_head, put_operand, size = STEP_HEAD.pack_into, STEP_OPERAND.pack_into, OPERAND.itemsize
        for number, s in enumerate(self.steps):
            read, to = 0, at + FIRST_OPERAND
            for t in (s.dst, *s.src):
                if t is not None:
                    n0, n1, n2, n3 = t.ne
                    put_operand(memory, to, t.data, n0, n1, n2, n3, *t.nb)
                    block_size, type_size = SIZES[t.type]
                    read += n0 * n1 * n2 * n3 * type_size // block_size
                to += size
            share, places = 0, [0, 0]
            for i, w in enumerate(s.scratch):
                places[i] = arena + w.address
                if w.per_thread:
                    share = max(share, w.size // n_threads)
            run, *called = [addresses[k] for k in s.kernels]
            count = parts(cost_ns(s.node, s.dst, read), n_threads)
            due += count
            ints = s.ints + NOTHING[len(s.ints) :]
            put_head(
                memory, at, run, s.sync, status, number, s.node.op_params, *ints, *places, share,
                *called, *NOTHING[: 3 - len(called)], count, due if s.sync else 0,
            )  # fmt: skip
            if s.sync:
                due = 0
            at += STEP.itemsize
        return table


def _span(tensor: Tensor) -> Span:
    return tensor.data, tensor.data + tensor.nbytes
