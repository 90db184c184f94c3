"""A graph as a list of kernel launches whose parameters lie ready in memory, run directly or replayed as a CUDA graph.

Owns how often it is launched before it is replayed, and by which slices. Knows no op, and no driver beyond its interface.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np

from pyggml.backend.base import Plan
from pyggml.backend.cuda.driver import GPU, Grid
from pyggml.errors import DeviceError
from pyggml.lowering.cuda import Builder, Head
from pyggml.ops import Op
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
        self._where = builder.where()
        self.keep: list[Any] = builder.buffers(nodes)
        packed = builder.pack()
        self.values = packed.values
        self.values[packed.relative] += memory
        # an array of addresses, one a word: a launch is given that of its first word's
        self.pointers = self.values.ctypes.data + 8 * np.arange(len(self.values), dtype=np.int64)
        ready: dict[Head, tuple[Any, Grid, int, int]] = {}
        for head in packed.heads:
            if head not in ready:
                kernel = gpu.load(head.spec)
                gpu.prepare(kernel, head.shared)
                ready[head] = kernel, *head[1:]
        parameters = (self.pointers.ctypes.data + 8 * packed.first).tolist()
        self.steps: list[tuple[Any, Grid, int, int, int]] = [
            (*ready[head], at) for head, at in zip(packed.heads, parameters, strict=True)
        ]

    def name(self, number: int) -> str:
        """Of the node that a kernel reports by this number."""
        number, where = self._where(number)
        return f"{Op(self.nodes[number].op).name} {self.nodes[number].name!r}{where}"

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
