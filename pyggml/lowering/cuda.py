"""A graph as a list of CUDA launches: parameters, work memory, constants.

Knows no single op (each family in kernels/cuda lowers its own) and no driver.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyggml.kernels.cuda.launch_args import LaunchArgs, Word, words, words_of
from pyggml.kernels.cuda.spec import DeviceAddress, Scratch, Spec
from pyggml.lowering.hazards import Memo, Span
from pyggml.lowering.spans import first_fit
from pyggml.tensor import Tensor

Grid = tuple[int, int, int]

STATUS_BYTES = 16
"""What a kernel reports that met an index out of range: 1 + number of the node, the index (i64), how many there are."""

ALIGNMENT = 256


class Head(NamedTuple):
    """What a launch runs."""

    spec: Spec
    grid: Grid
    threads: int
    shared: int


@dataclass(slots=True)
class Launch:
    """`args`: its words, `of`: the class that they are of."""

    head: Head
    args: tuple[Word, ...]
    of: type


class Packed(NamedTuple):
    """All launches of a plan, their words in one array.

    heads     of each launch
    first     number of each launch's first word
    values    the words, floats by their bits
    relative  numbers of the words that are offsets in the plan's memory
    """

    heads: list[Head]
    first: NDArray[np.int64]
    values: NDArray[np.int64]
    relative: NDArray[np.int64]


@dataclass
class Builder:
    """What lowering a graph gathers. `node`: the one being lowered, `number` its place among the plan's nodes."""

    cc: tuple[int, int]
    multiprocessors: int
    shared_limit: int
    launches: list[Launch] = field(default_factory=list)
    node: Tensor | None = None
    number: int = 0
    reports: bool = False
    _constants: list[NDArray[np.uint8]] = field(default_factory=list)
    _constant_bytes: int = STATUS_BYTES
    _named: dict[Any, DeviceAddress] = field(default_factory=dict)
    _memo: Memo = field(default_factory=Memo)
    _made: list[tuple[Any, Any, Tensor]] = field(default_factory=list)
    _readers: dict[int, list[Tensor]] = field(default_factory=dict)
    _nodes: Sequence[Tensor] = ()
    _ends: frozenset[int] = frozenset()
    _pieces: dict[int, Scratch] = field(default_factory=dict)  # of work memory that launches name
    _base: Scratch = field(default_factory=lambda: Scratch(0))

    def begin_group(self, nodes: Sequence[Tensor], number: int) -> None:
        """These nodes, the first of which has this number, are about to be lowered together."""
        self.node, self.number = nodes[-1], number + len(nodes) - 1

    def end_group(self, nodes: Sequence[Tensor]) -> None:
        """They are lowered; some of their results, at least the last, are there."""
        self.wrote(*nodes)

    def reach(self, number: int, most: int) -> int:
        """How many nodes from this one on may be lowered together, at most `most`: to the end of their layer, so that a few layers
        are lowered as all are (cuda_layers.py)."""
        some = self._nodes[number : number + most]
        return next((i + 1 for i, node in enumerate(some) if id(node) in self._ends), len(some))

    def launch(
        self,
        spec: Spec,
        grid: Sequence[int],
        threads: int,
        args: LaunchArgs,
        shared: int = 0,
    ) -> None:
        """Add a kernel: `grid` has one to three dimensions, `args` is of the class that stands beside the kernel."""
        x, y, z = (*grid, 1, 1)[:3]
        assert x > 0 and y > 0 and z > 0 and threads % 32 == 0 and y < 65536 and z < 65536, (spec, grid, threads)
        assert shared <= self.shared_limit, (spec, shared)
        given = words(args)
        for arg in given:
            if arg.__class__ is DeviceAddress and arg.scratch is not self._base:
                scratch = arg.scratch
                scratch.first = len(self.launches) if scratch.first < 0 else scratch.first
                scratch.last = len(self.launches)
                self._pieces[id(scratch)] = scratch
        self.launches.append(Launch(Head(spec, (x, y, z), threads, shared), given, type(args)))

    def scratch(self, size: int) -> Scratch:
        """Work memory from the first launch that names it to the last."""
        return Scratch(size)

    def constant(self, values: NDArray[Any], name: Any = None) -> DeviceAddress:
        """Numbers that are the same in every run; with a name they can be asked for again."""
        data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        at = -(-self._constant_bytes // 16) * 16
        self._constants.append(np.zeros(at - self._constant_bytes, np.uint8))
        self._constants.append(data)
        self._constant_bytes = at + data.size
        address = DeviceAddress(self._base, at)
        if name is not None:
            self._named[name] = address
        return address

    def remembered_constant(self, name: Any) -> DeviceAddress | None:
        return self._named.get(name)

    def status(self) -> DeviceAddress:
        """Where a kernel reports an index out of range."""
        self.reports = True
        return DeviceAddress(self._base, 0)

    def remember(self, key: Any, value: Any, source: Tensor) -> None:
        """Keep what was made of `source` until something is written to its memory."""
        self._memo.remember(key, value, _span(source))

    def remembered(self, key: Any) -> Any:
        return self._memo.remembered(key)

    def made(self, key: Any, value: Any, source: Tensor) -> None:
        """The node that is being lowered makes this of its own result: to be kept once the result counts as written."""
        self._made.append((key, value, source))

    def wrote(self, *tensors: Tensor) -> None:
        """Forget what was made of memory that nodes have written to; keep what they have made of it."""
        for tensor in tensors:
            self._memo.wrote(*_span(tensor))
        for made in self._made:
            self.remember(*made)
        self._made.clear()

    def counters(self, n: int) -> DeviceAddress:
        """So many i32, which are 0 before each run; kernels leave them at 0."""
        return self.constant(np.zeros(n, np.int32))

    def expect(self, nodes: Sequence[Tensor], ends: frozenset[int]) -> None:
        """All nodes that will be lowered; `ends`: id() of those that layers end with."""
        self._nodes, self._ends = nodes, ends
        for node in nodes:
            for s in node.src:
                if s is not None:
                    self._readers.setdefault(id(s.view_src or s), []).append(node)

    def readers_of(self, node: Tensor) -> Sequence[Tensor]:
        """The nodes that read what lies in this one's memory as it, or as views of it."""
        return self._readers.get(id(node.view_src or node), ())

    def place_scratch(self) -> int:
        """Give all work memory its offset behind the constants; -> bytes in all."""
        start = -(-self._constant_bytes // ALIGNMENT) * ALIGNMENT
        pieces = list(self._pieces.values())
        offsets, size = first_fit(((s.size, s.first, s.last) for s in pieces), ALIGNMENT)
        for piece, offset in zip(pieces, offsets, strict=True):
            piece.offset = start + offset
        return start + size

    def check(self) -> None:
        """Asked when all nodes are lowered."""

    def pack(self) -> Packed:
        """The launches, when work memory has its places."""
        values, floats, first = array("q"), array("f"), array("q")
        float_at, relative = array("q"), array("q")
        for launch in self.launches:
            at, args, kinds = len(values), list(launch.args), words_of(launch.of)
            first.append(at)
            for i in kinds.floats:
                float_at.append(at + i)
                floats.append(args[i])  # type: ignore[arg-type]
                args[i] = 0
            for i in kinds.longs:
                arg = args[i]
                if arg.__class__ is DeviceAddress:
                    relative.append(at + i)
                    args[i] = arg.scratch.offset + arg.offset
            values.extend(args)  # type: ignore[arg-type]
        packed = np.array(values, np.int64)
        packed.view(np.float32)[2 * np.array(float_at, np.int64)] = floats
        heads = [launch.head for launch in self.launches]
        return Packed(heads, np.array(first, np.int64), packed, np.array(relative, np.int64))

    def where(self) -> Callable[[int], tuple[int, str]]:
        """-> f(number of a node, as kernels report it): its number among those that were lowered, and what to add to its name."""
        return lambda number: (number, "")

    def buffers(self, nodes: Sequence[Tensor]) -> list[Any]:
        """All that operands of these nodes lie in."""
        return list({id(t.buffer): t.buffer for n in nodes for t in (n, *n.src) if t is not None}.values())

    def constants(self) -> NDArray[np.uint8]:
        """The first bytes of the plan's memory: status, constants."""
        return np.concatenate([np.zeros(STATUS_BYTES, np.uint8), *self._constants])


def _span(tensor: Tensor) -> Span:
    return tensor.data, tensor.data + max(tensor.nbytes, 1)
