"""A graph as a list of kernel launches whose parameters lie ready in memory, run directly or replayed as a CUDA graph.

Owns how often it is launched before it is replayed, and by which slices. Knows no op, and no driver beyond its interface.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np

from pyggml.backend.base import Buffer, Plan
from pyggml.backend.cuda.driver import GPU, Grid
from pyggml.errors import DeviceError
from pyggml.kernels.cuda.spec import DeviceAddress
from pyggml.lowering.cuda import Builder
from pyggml.tensor import Tensor

REPLAY_FROM = 2
"""A plan is noted as a graph when it runs for the second time, if it is long enough to gain by it."""
REPLAY_LAUNCHES = 4
REPLAY_SECONDS = 0.1
"""A plan that takes longer is not noted: a graph cannot be ended, nor does anybody get at the GPU within it."""
FIRST_SLICE = 2
"""Launches that are handed over together in the beginning, before it is known how long they take."""


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
                elif isinstance(arg, DeviceAddress):
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
                self.graph = self._capture()
            except DeviceError as error:
                if self.gpu.lost is not None:
                    raise
                self.unnoted = str(error)
        if self.graph is None:
            return False
        self.gpu.replay(self.graph)
        return True

    def _capture(self) -> Any:
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
