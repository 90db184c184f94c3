"""What lowering a graph to CPU steps gathers: the steps, their work memory, the barriers between them; and the records made of it.

Knows no single op: each family in kernels/cpu lowers its own through `Builder`.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyggml import jit
from pyggml.dtypes import GGMLType
from pyggml.errors import WorkMemoryError
from pyggml.kernels.cpu.step_args import MAX_ARGS, StepArgs, packed
from pyggml.lowering.hazards import Hazards, Memo, Span
from pyggml.lowering.parts import cost_ns, parts
from pyggml.lowering.spans import first_fit
from pyggml.lowering.table import StepTable
from pyggml.steps import MAX_OPERANDS, OPERAND, PLAN, STEP
from pyggml.tensor import Tensor

NOTHING = (0,) * 8
AT_ONCE = 1024


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
    held: tuple[Scratch, ...]  # those and the operands' own
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
        assert self.node is not None and len(src) <= MAX_OPERANDS and len(args) <= MAX_ARGS
        scratch = (*writes, *reads)
        assert len(scratch) <= 2 and len(calls) <= 3
        held, written, read, write = list(scratch), [id(s) for s in writes], [], []
        if isinstance(dst, WorkTensor):
            held.append(dst.scratch)
            written.append(id(dst.scratch))
        elif dst is not None:
            write.append((dst.data, dst.data + dst.nbytes))
        for t in src:
            if isinstance(t, WorkTensor):
                held.append(t.scratch)
            elif t is not None:
                read.append((t.data, t.data + t.nbytes))
        if self._hazards.in_the_way(read, write, [id(s) for s in held if not s.per_thread] if held else ()):
            self.barrier()
        for low, high in write:
            self._memo.wrote(low, high)
        self._hazards.add(read, write, written)
        number, kernels = len(self.steps), self._kernels
        for s in held:
            s.first = number if s.first < 0 else s.first
            s.last = number
        self.steps.append(
            _Step(
                spec,
                self.node,
                dst,
                tuple(src),
                packed(args),
                scratch,
                tuple(held),
                tuple([kernels.setdefault(s, len(kernels)) for s in (spec, *calls)]),
            )
        )

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

    def finish(self, status: int, max_work: int | None = None) -> Lowered:
        """`status`: the address that kernels report to. Raises WorkMemoryError for more than `max_work` bytes."""
        arena_size, record_size = self.place(), PLAN.itemsize + self.count() * STEP.itemsize
        work = arena_size + record_size + 128
        if max_work is not None and work > max_work:
            raise WorkMemoryError(work, max_work)
        jit.ensure(self.kernels())
        arena = _zeros(arena_size)
        table = self.records(int(arena.ctypes.data)).sealed(status)
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

    def records(self, arena: int) -> StepTable:
        """The steps' records. `arena`: the address of the work memory. NumPy takes in so many steps at a time that other
        threads get the interpreter in between."""
        table = StepTable(len(self.steps))
        for s in self.steps:
            for t in (s.dst, *s.src):
                if isinstance(t, WorkTensor):
                    t.data = arena + t.scratch.address
        for first in range(0, len(self.steps), AT_ONCE):
            last = min(first + AT_ONCE, len(self.steps))
            self._fill(table.steps[first:last], table.operands[first:last], self.steps[first:last], arena)
        table.steps["index"] = np.arange(len(self.steps))
        return table

    def _fill(self, records: NDArray[Any], operands: NDArray[np.int64], steps: list[_Step], arena: int) -> None:
        """A field of all records at a time."""
        addresses, n_threads = [jit.address(spec) for spec in self._kernels], self.n_threads
        numbers, slots, words = array("q"), array("q"), array("q")
        kernels, work, own = [], [], []
        for i, s in enumerate(steps):
            for j, t in enumerate((s.dst, *s.src)):
                if t is not None:
                    numbers.append(i)
                    slots.append(j)
                    words.extend((t.data, *t.ne, *t.nb))
            kernels.append([*[addresses[k] for k in s.kernels], *NOTHING[len(s.kernels) : 4]])
            work.append([*[arena + w.address for w in s.scratch], *NOTHING[len(s.scratch) : 2]])
            own.append(max([w.size // n_threads for w in s.scratch if w.per_thread], default=0))
        called = np.array(kernels, np.uint64)
        records["kernel"], records["calls"] = called[:, 0], called[:, 1:]
        records["sync"] = [s.sync for s in steps]
        records["parts"] = [parts(cost_ns(s.node, s.dst, s.src), n_threads) for s in steps]
        records["params"] = np.frombuffer(b"".join([s.node.op_params for s in steps]), "<i4").reshape(-1, 16)
        records["ints"] = [(*s.ints, *NOTHING[len(s.ints) :]) for s in steps]
        records["scratch"], records["thread_bytes"] = work, own
        at = np.frombuffer(numbers, np.int64), np.frombuffer(slots, np.int64)
        operands[at] = np.frombuffer(words, np.int64).reshape(-1, OPERAND.itemsize // 8)


def _span(tensor: Tensor) -> Span:
    return tensor.data, tensor.data + tensor.nbytes


def _zeros(size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Bytes at a multiple of 64."""
    raw = np.zeros(size + 64, np.uint8)
    return raw[-raw.ctypes.data % 64 :][:size]
