"""One graph over several devices: cut into splits, activations copied across, one plan a split, run again and again.

Owns the compute buffers and the copies between devices; which device takes a node is `assign.py`'s business, where its
result lies `alloc.py`'s. Knows no kernel and no network. Follows ggml-backend.cpp (ggml_backend_sched_*).
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyggml.alloc import Allocation, Arena, Step, place_tensors, steps_of
from pyggml.backend.assign import assign
from pyggml.backend.base import Backend, Begun, Buffer, Plan, Usage
from pyggml.backend.host import ELEMENTS, HostBuffer
from pyggml.backend.repeats import PlaceWatch
from pyggml.errors import ComputeError, DeviceError
from pyggml.graph import Graph, IrregularError, Repeats
from pyggml.ops import VIEW_OPS
from pyggml.tensor import Flag, Tensor

if TYPE_CHECKING:
    from pyggml.jit import Job


@dataclass
class Split:
    """Nodes that one device computes in a row, and what it needs from others before."""

    device: int
    nodes: list[Tensor] = field(default_factory=list)
    copies: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # (original, its copy here)
    plan: Plan | None = None
    begun: Begun | None = None
    repeats: Repeats | None = None  # of the split that has the layers, where they stand for more


class Scheduler:
    """Backends in order of preference, the local CPU last, and one compute buffer on each, shared by all schedules."""

    def __init__(self, backends: Sequence[Backend]) -> None:
        assert backends
        self.backends = list(backends)
        self.devices = [backend.device for backend in backends]
        self.generation = 0  # grows when a buffer moves: schedules then place their tensors anew
        self.aborted = False
        self._buffers: list[Buffer | None] = [None] * len(backends)

    @property
    def sizes(self) -> list[int]:
        """Bytes of each device's compute buffer."""
        return [0 if buffer is None else buffer.size for buffer in self._buffers]

    def schedule(self, graph: Graph) -> Schedule:
        """Make a graph ready to run. It belongs to the schedule then: sources are replaced by their copies.

        Raises UnsupportedError when no device computes a node; where `graph.runs`, IrregularError when its layers
        cannot stand for others here, which `Schedule.begin` may find as well.
        """
        return Schedule(self, graph)

    def reserve(self, sizes: Sequence[int]) -> None:
        """Make each compute buffer at least so big. What lies in one that grows is lost. Raises DeviceError."""
        for i, size in enumerate(sizes):
            old = self._buffers[i]
            if size <= (0 if old is None else old.size):
                continue
            device = self.devices[i]
            if size > device.max_size:
                raise DeviceError(
                    f"{device.name}: the compute buffer needs {size} bytes, a buffer has at most {device.max_size}"
                )
            self.generation += 1
            if old is not None:
                self._buffers[i] = None
                old.free()
            self._buffers[i] = device.alloc_buffer(size, Usage.COMPUTE)

    def buffer(self, device: int) -> Buffer:
        """The compute buffer of device number `device`, which must have one."""
        buffer = self._buffers[device]
        assert buffer is not None, device
        return buffer

    def abort(self) -> None:
        """Make a running schedule end early with ComputeError; from any thread."""
        self.aborted = True
        for backend in self.backends:
            backend.abort()

    def close(self) -> None:
        """Free the compute buffers. The backends are their owner's to close."""
        for buffer in self._buffers:
            if buffer is not None:
                buffer.free()
        self._buffers = [None] * len(self.backends)
        self.generation += 1


class Schedule:
    """A graph that runs any number of times: set_input for every input, run, get what is needed.

    splits  what runs where, in order
    sizes   bytes of compute buffer that each device needs for it
    """

    def __init__(self, scheduler: Scheduler, graph: Graph) -> None:
        self.scheduler = scheduler
        self.splits: list[Split] = []
        self._inputs: dict[int, list[Tensor]] = {}  # id(input) -> where its bytes are wanted
        self._input_names = {id(t): t for t in graph.leafs if t.flags & Flag.INPUT}
        self._views: list[Tensor] = []
        self._generation = -1
        self._ends = graph.ends
        device_of = assign(graph, scheduler.devices)
        steps = self._cut(graph, device_of)
        arenas = [Arena(device.alignment) for device in scheduler.devices]
        runs = [run for run in graph.runs if run.pattern.first < run.pattern.last]
        watches = [self._watch(run, steps, arenas) for run in runs]
        after = {key: done for watch in watches for key, done in watch.after.items()}
        if len(scheduler.devices) == 1:
            places = place_tensors(steps, arenas, lambda t: 0, scheduler.devices[0].alloc_size, after)
        else:
            places = place_tensors(
                steps,
                arenas,
                lambda t: device_of[id(t)],
                lambda t: scheduler.devices[device_of[id(t)]].alloc_size(t),
                after,
            )
        for watch in watches:
            with of_run(watch.repeats):
                watch.check(places)
        self.sizes = [arena.size for arena in arenas]
        self._places: list[tuple[Tensor, Allocation]] = []
        self._collect(steps, places)

    def _watch(self, repeats: Repeats, steps: list[Step], arenas: list[Arena]) -> PlaceWatch:
        """Raises IrregularError unless all layers of a run, but for the last one's end, lie in one split of a device that is
        able to repeat them; before and behind others may compute."""
        with of_run(repeats):
            pattern, ends = repeats.pattern, repeats.ends
            where = {id(node): split for split in self.splits for node in split.nodes}
            homes = [where.get(id(end)) for end in ends]
            home = homes[pattern.first - 1]
            final = len(ends) == len(pattern.layers) and homes[-1] is not home  # another device makes it
            if final:
                repeats = replace(repeats, ends=ends[:-1])
            rest = homes[:-1] if final else homes
            last = pattern.last == len(pattern.layers)
            there = not last or (not final and (len(ends) == len(pattern.layers) or home is self.splits[-1]))
            if home is None or not there or any(one is not home for one in rest):
                raise IrregularError("layers are repeated where one device computes all of them")
            if not self.scheduler.backends[home.device].repeats:
                raise IrregularError(f"{self.scheduler.devices[home.device].name} does not repeat layers")
            if home.repeats is not None:
                raise IrregularError("two runs of layers are computed by one device")
            home.repeats = repeats
            return PlaceWatch(repeats, steps, arenas[home.device])

    def _cut(self, graph: Graph, device_of: dict[int, int]) -> list[Step]:
        """Fill `splits`, point nodes at copies where a source is elsewhere, and tell the steps of the whole run."""
        if len(self.scheduler.devices) == 1:
            nodes = [node for node in graph.nodes if node.op not in VIEW_OPS]
            self.splits = [Split(0, nodes)] if nodes else []
            return steps_of(nodes)
        steps: list[Step] = []
        made: dict[tuple[int, int], Tensor] = {}  # (id(original), device) -> copy
        for node in graph.nodes:
            if node.op in VIEW_OPS:
                continue
            device = device_of[id(node)]
            if not self.splits or self.splits[-1].device != device:
                self.splits.append(Split(device))
            split = self.splits[-1]
            split.nodes.append(node)
            reads = tuple([s for s in node.src if s is not None])
            if all(device_of[id(s)] == device for s in reads):
                steps.append(Step(node, reads))
                continue
            sources: list[Tensor | None] = []
            for source in node.src:
                if source is None or device_of[id(source)] == device:
                    sources.append(source)
                    continue
                copy = made.get((id(source), device))
                if copy is None:
                    copy = self._copy(source, device, device_of)
                    made[id(source), device] = copy
                    if not copy.flags & Flag.INPUT:
                        split.copies.append((source, copy))
                        steps.append(Step(copy, (source,)))
                sources.append(copy)
            node.src = tuple(sources)
            steps.append(Step(node, tuple(s for s in sources if s is not None)))
        return _copies_first(self.splits, steps) if any(split.copies for split in self.splits) else steps

    def _copy(self, source: Tensor, device: int, device_of: dict[int, int]) -> Tensor:
        name = f"{self.scheduler.devices[device].name}#{source.name}"
        is_input = source.flags & Flag.INPUT and source.buffer is None and not source.is_view
        copy = Tensor(source.type, source.ne, source.nb, name=name, flags=Flag.INPUT if is_input else 0)
        device_of[id(copy)] = device
        if is_input:
            self._inputs.setdefault(id(source), []).append(copy)
        return copy

    def _collect(self, steps: list[Step], places: dict[int, Allocation]) -> None:
        """List what has to get an address: placed tensors, views of anything, inputs that are read where they are."""
        views: dict[Tensor, None] = {}
        roots: dict[Tensor, None] = {}
        for step in steps:
            for tensor in (*step.reads, step.result):
                root = tensor.view_src
                if root is None:
                    root = tensor
                else:
                    views[tensor] = None
                if root.buffer is None:
                    roots[root] = None
        self._views = list(views)
        for root in roots:
            key = id(root)
            self._places.append((root, places[key]))
            if key in self._input_names:
                self._inputs.setdefault(key, []).append(root)

    def begin(self) -> list[Job]:
        """The first half of `bind`, which does not wait for kernels that have to be compiled; the jobs to wait for."""
        scheduler = self.scheduler
        scheduler.reserve(self.sizes)
        if self._generation != scheduler.generation:
            for tensor, place in self._places:
                scheduler.buffer(place.arena).place(tensor, place.offset)
            for view in self._views:
                root = view.view_src
                assert root is not None
                view.buffer = root.buffer
                view.data = root.data + view.view_offs
            all_uses: list[Counter[int]] = []
            for number, split in enumerate(self.splits):

                def uses(number: int = number) -> Counter[int]:
                    if not all_uses:
                        all_uses.extend(self._uses())
                    return all_uses[number]

                split.plan = None
                made = _SplitGraph(split.nodes, uses, split.repeats, self._ends, len(self.splits) == 1)
                with of_run(split.repeats):
                    split.begun = scheduler.backends[split.device].begin(made)
            self._generation = scheduler.generation
        return [job for split in self.splits if split.begun is not None for job in split.begun.jobs]

    def bind(self) -> None:
        """Give every tensor its address and lower the splits; done anew when a compute buffer has grown since."""
        self.begin()
        for split in self.splits:
            if split.begun is not None:
                split.plan = split.begun.finish()
                split.begun = None

    def _uses(self) -> list[Counter[int]]:
        """For each split how often each tensor is read by any, itself or through a view, copies to other devices included; by
        layers of other splits as often as they stand for."""
        plain = [Counter(_reads(split, None)) for split in self.splits]
        if all(split.repeats is None for split in self.splits) or len(self.splits) == 1:
            return [sum(plain, Counter[int]())] * len(self.splits)
        every = [Counter(_reads(split, split.repeats)) for split in self.splits]
        whole = sum(every, Counter[int]())
        return [
            Counter({key: n - theirs[key] + own[key] for key, n in whole.items()})
            for theirs, own in zip(every, plain, strict=True)
        ]

    def set_input(self, tensor: Tensor, values: NDArray[Any]) -> None:
        """Write an input of the graph to every device that reads it; once before each run."""
        self.bind()
        assert id(tensor) in self._input_names, tensor
        data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        assert data.nbytes == tensor.nbytes, (tensor, values.shape, values.dtype)
        for target in self._inputs.get(id(tensor), ()):
            assert target.buffer is not None
            target.buffer.set(target, data)

    def run(self) -> None:
        """Compute all splits in order. Raises ComputeError when a node fails or the run is aborted."""
        self.bind()
        scheduler = self.scheduler
        if self.splits and self.splits[0].device != self.splits[-1].device:
            scheduler.backends[self.splits[-1].device].flush()  # it takes in its inputs while others compute
        for split in self.splits:
            for source, copy in split.copies:
                copy_across(source, copy)
            if scheduler.aborted:
                raise ComputeError("aborted")
            assert split.plan is not None
            scheduler.backends[split.device].compute(split.plan)

    def get(self, tensor: Tensor) -> NDArray[Any]:
        """A copy of the elements of a contiguous tensor after a run, shape ne reversed; read-only where it came from
        another device. It must be flagged OUTPUT, or be one that nothing overwrites."""
        assert tensor.buffer is not None and tensor.is_contiguous and tensor.type in ELEMENTS, tensor
        if isinstance(tensor.buffer, HostBuffer):
            return tensor.buffer.bytes_of(tensor).copy().view(ELEMENTS[tensor.type]).reshape(tensor.ne[::-1])
        return np.frombuffer(tensor.buffer.get(tensor), ELEMENTS[tensor.type]).reshape(tensor.ne[::-1])


@contextlib.contextmanager
def of_run(repeats: Repeats | None) -> Iterator[None]:
    """An IrregularError says which run of layers it is about."""
    try:
        yield
    except IrregularError as error:
        if repeats is not None:
            error.run = repeats.begin
        raise


def _reads(split: Split, repeats: Repeats | None) -> Iterator[int]:
    """id() of what the split's nodes and copies read, once for each time; by a layer of `repeats` once for each that it stands
    for."""
    times = [1] * len(split.nodes)
    if repeats is not None:
        stands = Counter(repeats.pattern.order)
        times = [stands.get(layer, 1) for layer in repeats.layers_of(split.nodes)]
    for node, n in zip(split.nodes, times, strict=True):
        for source in node.src:
            if source is not None:
                yield from (id(source),) * n
                if source.view_src is not None:
                    yield from (id(source.view_src),) * n
    for source, _ in split.copies:
        yield id(source)
        if source.view_src is not None:
            yield id(source.view_src)


def copy_across(source: Tensor, copy: Tensor) -> None:
    """Copy bytes between tensors of the same layout on any two devices."""
    assert source.buffer is not None and copy.buffer is not None
    if not copy.buffer.copy(source, copy):
        copy.buffer.set(copy, source.buffer.get(source))


def _copies_first(splits: list[Split], steps: list[Step]) -> list[Step]:
    """The steps in the order in which they happen: a split's copies are all made before its first node."""
    by_result = {id(step.result): step for step in steps}
    ordered: list[Step] = []
    for split in splits:
        ordered.extend(by_result[id(copy)] for _, copy in split.copies)
        ordered.extend(by_result[id(node)] for node in split.nodes)
    return ordered


class _SplitGraph(Graph):
    """A split's nodes as a graph of its own. `run_uses` counts the readers of the run."""

    def __init__(
        self,
        nodes: list[Tensor],
        run_uses: Callable[[], Counter[int]],
        repeats: Repeats | None,
        ends: frozenset[int],
        closed: bool,
    ) -> None:
        super().__init__(nodes, repeats, ends, closed=closed)
        self._run_uses = run_uses

    @cached_property
    def uses(self) -> dict[int, int]:
        uses, sources = self._run_uses(), [s for node in self.nodes for s in node.src if s is not None]
        return {id(t): uses[id(t)] for s in sources for t in (s.view_src, s) if t is not None}
