"""A graph as a list of kernel launches whose parameters lie ready in memory, run directly or replayed as a CUDA graph.

Owns the lowering's bookkeeping: parameters, work memory, constants. Knows no single op (each family in kernels/cuda
lowers its own) and no driver beyond its interface.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyggml.backend.base import Buffer, Plan
from pyggml.backend.cuda.driver import GPU, Grid
from pyggml.backend.hazards import Memo, Span
from pyggml.backend.spans import first_fit
from pyggml.errors import DeviceError
from pyggml.kernels.cuda.spec import Place, Scratch, Spec
from pyggml.tensor import Tensor

STATUS_BYTES = 16
"""What a kernel reports that met an index out of range: 1 + number of the node, the index (i64), how many there are."""

ALIGNMENT = 256
REPLAY_FROM = 2
"""A plan is noted as a graph when it runs for the second time, if it is long enough to gain by it."""
REPLAY_LAUNCHES = 4
REPLAY_SECONDS = 0.1
"""A plan that takes longer is not noted: a graph cannot be ended, nor does anybody get at the GPU within it."""
FIRST_SLICE = 2
"""Launches that are handed over together in the beginning, before it is known how long they take."""


@dataclass
class _Launch:
    spec: Spec
    grid: Grid
    threads: int
    shared: int
    args: tuple[int | float | Place, ...]


@dataclass
class Builder:
    """What lowering a graph gathers. `node`: the one being lowered, `number` its place among the plan's nodes."""

    cc: tuple[int, int]
    multiprocessors: int
    shared_limit: int
    launches: list[_Launch] = field(default_factory=list)
    node: Tensor | None = None
    number: int = 0
    reports: bool = False
    _constants: list[NDArray[np.uint8]] = field(default_factory=list)
    _constant_bytes: int = STATUS_BYTES
    _named: dict[Any, Place] = field(default_factory=dict)
    _memo: Memo = field(default_factory=Memo)
    _base: Scratch = field(default_factory=lambda: Scratch(0))

    def launch(
        self, spec: Spec, grid: Sequence[int], threads: int, args: Sequence[int | float | Place], shared: int = 0
    ) -> None:
        """Add a kernel: `grid` has one to three dimensions, `args` are its parameters in order."""
        x, y, z = (*grid, 1, 1)[:3]
        assert x > 0 and y > 0 and z > 0 and threads % 32 == 0 and y < 65536 and z < 65536, (spec, grid, threads)
        assert shared <= self.shared_limit, (spec, shared)
        for arg in args:
            if isinstance(arg, Place) and arg.scratch is not self._base:
                scratch = arg.scratch
                scratch.first = len(self.launches) if scratch.first < 0 else scratch.first
                scratch.last = len(self.launches)
        self.launches.append(_Launch(spec, (x, y, z), threads, shared, tuple(args)))

    def scratch(self, size: int) -> Scratch:
        """Work memory from the first launch that names it to the last."""
        return Scratch(size)

    def constant(self, values: NDArray[Any], name: Any = None) -> Place:
        """Numbers that are the same in every run; with a name they can be asked for again."""
        data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        at = -(-self._constant_bytes // 16) * 16
        self._constants.append(np.zeros(at - self._constant_bytes, np.uint8))
        self._constants.append(data)
        self._constant_bytes = at + data.size
        place = Place(self._base, at)
        if name is not None:
            self._named[name] = place
        return place

    def remembered_constant(self, name: Any) -> Place | None:
        return self._named.get(name)

    def status(self) -> Place:
        """Where a kernel reports an index out of range."""
        self.reports = True
        return Place(self._base, 0)

    def remember(self, key: Any, value: Any, source: Tensor) -> None:
        """Keep what was made of `source` until something is written to its memory."""
        self._memo.remember(key, value, _span(source))

    def remembered(self, key: Any) -> Any:
        return self._memo.remembered(key)

    def wrote(self, tensor: Tensor) -> None:
        """Forget what was made of memory that a node has written to."""
        self._memo.wrote(*_span(tensor))

    def place_scratch(self) -> int:
        """Give all work memory its offset behind the constants; -> bytes in all."""
        start = -(-self._constant_bytes // ALIGNMENT) * ALIGNMENT
        named = [arg.scratch for step in self.launches for arg in step.args if isinstance(arg, Place)]
        pieces = list({id(s): s for s in named if s is not self._base}.values())
        offsets, size = first_fit(((s.size, s.first, s.last) for s in pieces), ALIGNMENT)
        for piece, offset in zip(pieces, offsets, strict=True):
            piece.offset = start + offset
        return start + size

    def constants(self) -> NDArray[np.uint8]:
        """The first bytes of the plan's memory: status, constants."""
        return np.concatenate([np.zeros(STATUS_BYTES, np.uint8), *self._constants])


def _span(tensor: Tensor) -> Span:
    return tensor.data, tensor.data + max(tensor.nbytes, 1)


class CudaPlan(Plan):
    """`nodes`: the node of each number, to name it when it fails. `memory`: address of status, constants and scratch."""

    def __init__(self, gpu: GPU, builder: Builder, nodes: list[Tensor], memory: int) -> None:
        self.gpu, self.nodes, self.memory = gpu, nodes, memory
        self.reports = builder.reports
        self.runs = 0
        self.seconds = 0.0  # that the last run by slices took
        self.slice = FIRST_SLICE  # launches of the next slice
        self.graph: Any = None
        self.unnoted: str | None = None  # why no graph can be made of it: then it is launched each time
        self.buffers: list[Buffer] = list(
            {
                id(t.buffer): t.buffer for n in nodes for t in (n, *n.src) if t is not None and t.buffer is not None
            }.values()
        )
        total = sum(len(step.args) for step in builder.launches)
        self.values = np.zeros(max(total, 1), np.int64)
        self.pointers = self.values.ctypes.data + 8 * np.arange(max(total, 1), dtype=np.int64)
        self.steps: list[tuple[Any, Grid, int, int, int]] = []
        at = 0
        for step in builder.launches:
            kernel = gpu.load(step.spec)
            gpu.prepare(kernel, step.shared)
            self.steps.append(
                (kernel, step.grid, step.threads, step.shared, int(self.pointers[at : at + 1].ctypes.data))
            )
            for arg in step.args:
                if isinstance(arg, float):
                    self.values[at : at + 1].view(np.float32)[0] = arg
                elif isinstance(arg, Place):
                    self.values[at] = memory + arg.scratch.offset + arg.offset
                else:
                    self.values[at] = arg
                at += 1

    def replay(self) -> bool:
        """Hand everything to the GPU as a graph, if it is noted, or is worth it by now. False: it is to be launched."""
        self.runs += 1
        worthwhile = self.runs >= REPLAY_FROM and len(self.steps) >= REPLAY_LAUNCHES
        if self.graph is None and worthwhile and self.seconds <= REPLAY_SECONDS and self.unnoted is None:
            try:
                self.graph = self._noted()
            except DeviceError as error:
                if self.gpu.lost is not None:
                    raise
                self.unnoted = str(error)
        if self.graph is None:
            return False
        self.gpu.replay(self.graph)
        return True

    def _noted(self) -> Any:
        """The launches as a graph. Raises DeviceError; the stream runs launches again then."""
        self.gpu.begin_capture()
        try:
            self.launch(0, len(self.steps))
        except BaseException:
            with contextlib.suppress(DeviceError):  # the first failure is the cause
                self.gpu.drop(self.gpu.end_capture())
            raise
        return self.gpu.end_capture()

    def launch(self, first: int, end: int) -> None:
        """Hand these steps to the GPU."""
        launch = self.gpu.launch
        for step in self.steps[first:end]:
            launch(*step)
