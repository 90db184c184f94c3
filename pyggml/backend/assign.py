"""Which device computes each node of a graph. Owns that choice; moves no byte and knows no size.

The passes are those of ggml-backend.cpp (ggml_backend_sched_split_graph, 1 to 4). Devices are numbers: 0 to n - 1 in
order of preference, the local CPU last.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pyggml.alloc import root_of
from pyggml.backend.base import Device, Usage
from pyggml.errors import UnsupportedError
from pyggml.graph import Graph
from pyggml.ops import VIEW_OPS, Op
from pyggml.tensor import Flag, Tensor

SMALL_WEIGHT_OPS = frozenset({Op.ROPE, Op.FLASH_ATTN_EXT})
"""Ops whose weight (frequency factors, sinks) is too small to decide where they run."""


def assign(graph: Graph, devices: Sequence[Device]) -> dict[int, int]:
    """id(tensor) -> number of its device, for all nodes, their sources and the roots of views.

    A node that nobody has placed goes to where its weights are, else to where its neighbours run (the CPU's are asked
    last), else to the device with most of its sources; a device that refuses the op is passed over. Raises
    UnsupportedError when no device computes a node, or when the one that holds its destination does not.
    """
    return _Assignment(graph, devices).run()


class _OneDevice(dict[int, int]):
    """There is one device, and it computes all."""

    def __missing__(self, key: int) -> int:
        return 0


class _Assignment:
    def __init__(self, graph: Graph, devices: Sequence[Device]) -> None:
        self.graph = graph
        self.devices = devices
        self.cpu = len(devices) - 1
        self.device_of: dict[int, int] = {}
        self.number = {id(device): i for i, device in enumerate(devices)}
        self.answers: dict[tuple[int, int], bool] = {}
        self.nodes = [node for node in graph.nodes if node.op not in VIEW_OPS]

    def run(self) -> dict[int, int]:
        if not self.cpu and all(map(self.devices[0].supports_op, self.nodes)):
            return _OneDevice()
        for leaf in self.graph.leafs:
            where = self.holder(leaf)
            if where is not None:
                self.device_of[id(leaf)] = where
            elif leaf.flags & Flag.INPUT:
                self.device_of[id(leaf)] = self.cpu
        for node in self.graph.nodes:
            wanted = self.pinned(node)
            if wanted is not None:
                self.device_of[id(node)] = wanted
        self.expand(self.nodes, past_cpu=False)
        self.expand(reversed(self.nodes), past_cpu=False)
        self.expand(self.nodes, past_cpu=True)
        self.expand(reversed(self.nodes), past_cpu=True)
        for node in self.nodes:
            if id(node) not in self.device_of:
                self.device_of[id(node)] = self.best(node)
        self.assign_sources()
        return self.device_of

    def holder(self, tensor: Tensor) -> int | None:
        buffer = root_of(tensor).buffer
        return None if buffer is None else self.number[id(buffer.device)]

    def supports(self, device: int, node: Tensor) -> bool:
        key = device, id(node)
        if key not in self.answers:
            self.answers[key] = self.devices[device].supports_op(node)
        return self.answers[key]

    def pinned(self, node: Tensor) -> int | None:
        """The device that the node's destination or one of its weights prescribes."""
        where = self.holder(node)
        if where is not None:
            if not self.supports(where, node):
                raise UnsupportedError(
                    f"{self.devices[where].name} holds {root_of(node).name!r} and cannot compute "
                    f"{Op(node.op).name} into it: {self.devices[where].why_not(node) or 'malformed'}"
                )
            return where
        if node.flags & Flag.INPUT:
            return self.cpu
        if node.op in SMALL_WEIGHT_OPS:
            return None
        for source in node.src:
            if source is not None and source.buffer is not None and source.buffer.usage is Usage.WEIGHTS:
                where = self.number[id(source.buffer.device)]
                return where if self.supports(where, node) else None
        return None

    def expand(self, nodes: Iterable[Tensor], past_cpu: bool) -> None:
        """Nodes that have no device yet get that of the node before, the CPU only if `past_cpu`."""
        current: int | None = None
        for node in nodes:
            here = self.device_of.get(id(node))
            if here is not None:
                current = here if past_cpu or here != self.cpu else None
            elif current is not None and self.supports(current, node):
                self.device_of[id(node)] = current

    def best(self, node: Tensor) -> int:
        """The device that supports the node and has most of its sources."""
        able = [i for i in range(len(self.devices)) if self.supports(i, node)]
        if not able:
            reasons = "; ".join(f"{d.name}: {d.why_not(node) or 'malformed'}" for d in self.devices)
            raise UnsupportedError(f"no device computes {Op(node.op).name} {node.name!r} ({reasons})")
        devices = [self.device_of.get(id(root_of(s))) for s in node.src if s is not None]
        return max(able, key=lambda device: (devices.count(device), -device))

    def assign_sources(self) -> None:
        """A view is on the device of its root, a leaf that nobody placed on the one that needs it first."""
        for node in self.graph.nodes:
            root = root_of(node)
            if node.op not in VIEW_OPS:
                self.device_of.setdefault(id(root), self.device_of[id(node)])
            elif root is not node:
                self.device_of[id(node)] = self.device_of.setdefault(id(root), self.cpu)
            for source in node.src:
                if source is not None:
                    where = self.device_of.setdefault(id(root_of(source)), self.device_of[id(node)])
                    self.device_of[id(source)] = where
