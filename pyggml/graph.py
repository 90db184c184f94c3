"""The order in which nodes are computed, and how a graph of a few layers stands for one of many.

Owns topological order, use counts, and which layers of a model a graph has; knows no model, no device and no kernel.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pyggml.tensor import Flag, Tensor

NONE_OP = 0


@dataclass
class Graph:
    """`nodes` have an op and stand after all that they read.

    repeats  the layers here, which one device computes, stand for more of them
    ends     id() of the nodes that layers end with, where that is known
    runs     `repeats` of a model's graph, of each run of layers that have one device; the scheduler makes graphs of one device
             with `repeats` of it
    closed   nodes are read by those here alone, whatever `uses` would say
    proved   each node has passed `ops.check` where it lies, and the device that computes it has been asked
    """

    nodes: list[Tensor] = field(default_factory=list)
    repeats: Repeats | None = None
    ends: frozenset[int] = frozenset()
    runs: Sequence[Repeats] = ()
    closed: bool = False
    proved: bool = False

    @cached_property
    def leafs(self) -> list[Tensor]:
        """What holds data: found when somebody asks, unless whoever made the graph has said it."""
        made = {id(node) for node in self.nodes}
        read = {id(root): root for node in self.nodes for s in node.src if s is not None for root in (s.view_src or s,)}
        return [root for key, root in read.items() if key not in made]

    @cached_property
    def uses(self) -> dict[int, int]:
        """How often each tensor is read, by id(); like `leafs`."""
        return Counter([id(s) for node in self.nodes for s in node.src if s is not None])


def build_forward(outputs: Iterable[Tensor]) -> Graph:
    """Everything that `outputs` need, in the order in which a reader of the sources meets it: left source first.

    Each node is marked Flag.COMPUTE. Outputs are visited in turn, so a write (SET_ROWS, CPY) that is listed before
    its reader is computed before it.
    """
    nodes: list[Tensor] = []
    leafs: list[Tensor] = []
    seen: set[Tensor] = set()
    compute, param = int(Flag.COMPUTE), int(Flag.PARAM)
    for output in outputs:
        stack: list[Tensor | None] = [output]
        while stack:
            tensor = stack.pop()
            if tensor is not None:
                if tensor in seen:  # done, or a cast, which is its own second source
                    continue
                seen.add(tensor)
                if tensor.src or tensor.view_src is not None:
                    stack += (tensor, None)  # None: the sources of the one below it are done
                    root = tensor.view_src
                    if root is not None and root not in seen:
                        stack.append(root)
                    for s in tensor.src[::-1]:
                        if s is not None and s not in seen:
                            stack.append(s)
                    continue
            else:
                tensor = stack.pop()
                assert tensor is not None
            if tensor.op == NONE_OP and not tensor.flags & param:
                leafs.append(tensor)
            else:
                tensor.flags |= compute
                nodes.append(tensor)
    graph = Graph(nodes)
    graph.leafs = leafs
    return graph


# ---- a few layers for all of a model's; which of them are alike is found in backend/repeats.py


class IrregularError(Exception):
    """Some layers cannot stand for the others here: build them all. Says why. `run`: where that run of layers begins, for
    which it holds; None: it is not known."""

    run: int | None = None


class Leafs:
    """What each layer reads or writes in its turn: its weights, its part of the cache; `tensors[layer]` in one order for
    layers that are alike. All are placed, and stay where they are. `own[layer]`: id() of those that no other has;
    `apart[layer]`: of those whose memory no other has."""

    def __init__(self, tensors: Sequence[Sequence[Tensor]]) -> None:
        self.tensors = [list(of_layer) for of_layer in tensors]
        self._spans: dict[int, LeafSpans] = {}
        each = [{id(t): t for t in of_layer} for of_layer in self.tensors]
        listed = Counter(key for of_layer in each for key in of_layer)
        placed = Counter(data for of_layer in each for data in {t.data for t in of_layer.values()})
        self.own = [{key for key in of_layer if listed[key] == 1} for of_layer in each]
        self.apart = [{key for key, t in of_layer.items() if placed[t.data] == 1} for of_layer in each]
        self.number = [{id(t): k for k, t in enumerate(of_layer)} for of_layer in self.tensors]
        self._parts: dict[tuple[int, int], Leafs] = {}

    def part(self, begin: int, end: int) -> Leafs:
        """Those of the layers from `begin` to `end` - 1, which are numbered anew; kept from graph to graph."""
        if (begin, end) == (0, len(self.tensors)):
            return self
        found = self._parts.get((begin, end))
        if found is None:
            found = self._parts[begin, end] = Leafs(self.tensors[begin:end])
            found.own, found.apart = self.own[begin:end], self.apart[begin:end]  # of all layers
        return found

    @cached_property
    def addresses(self) -> NDArray[np.int64]:
        """(layers, tensors)"""
        most = max(map(len, self.tensors), default=0)
        return np.array([[*(t.data for t in ts), *[0] * (most - len(ts))] for ts in self.tensors], np.int64)

    def spans(self, layer: int) -> LeafSpans:
        """Of a layer, kept from graph to graph."""
        found = self._spans.get(layer)
        if found is None:
            found = self._spans[layer] = LeafSpans(self.tensors[layer])
        return found

    @cached_property
    def buffer_ids(self) -> frozenset[int]:
        """id() of the buffers."""
        return frozenset(map(id, self.buffers))

    @cached_property
    def buffers(self) -> list[object]:
        """The buffers that leafs lie in, each once."""
        return list({id(t.buffer): t.buffer for of_layer in self.tensors for t in of_layer}.values())


class LeafSpans:
    """The memory of one layer's leafs."""

    def __init__(self, leafs: Sequence[Tensor]) -> None:
        ordered = sorted((t.data, t.data + t.nbytes, number) for number, t in enumerate(leafs) if t.nbytes)
        self._lows = [low for low, _, _ in ordered]
        self._rest = [(high, number) for _, high, number in ordered]
        self._arrays: NDArray[np.int64] | None = None

    def find(self, t: Tensor) -> int | None:
        """The number of the leaf in which a tensor lies."""
        at = bisect_right(self._lows, t.data) - 1
        if at < 0:
            return None
        high, number = self._rest[at]
        return number if t.data < high else None

    def numbers(self, words: NDArray[np.int64], lowest: int) -> NDArray[np.int64]:
        """The number of the leaf in which each of these addresses lies; -1 of those that lie in none, and of other words.
        Raises IrregularError where leafs lie below `lowest`, so that other words might be taken for addresses."""
        if self._arrays is None:
            self._arrays = np.array([(low, *rest) for low, rest in zip(self._lows, self._rest, strict=True)], np.int64)
        if not len(self._arrays):
            return np.full(len(words), -1, np.int64)
        lows, highs, numbers = self._arrays.T
        if lows[0] < lowest:
            raise IrregularError(f"addresses such as {lows[0]:#x} could be sizes")
        at = np.searchsorted(lows, words, "right") - 1
        return np.where((at >= 0) & (words < highs[at]), numbers[at], -1)


@dataclass(frozen=True)
class Pattern:
    """`layers` of the model to build, ascending; `order`: for each of the model's, the position in `layers` of the one that
    stands for it. Those at positions `first` to `last` - 1 stand for others, or may, `unit` neighbours together; the ones
    before and behind do not."""

    layers: tuple[int, ...]
    order: tuple[int, ...]
    first: int
    last: int
    unit: int = 1

    def unit_of(self, layer: int) -> int:
        """The first of the layers (positions) that stand for others together with this one."""
        if self.first <= layer < self.last:
            return layer - (layer - self.first) % self.unit
        return layer

    def repeated(self, layer: int) -> bool:
        """Whether the layer is one of those that are alike."""
        return self.first <= layer < self.last


@dataclass(frozen=True)
class Runs:
    """Patterns of the runs of layers that have one device each: of those from `begins[i]` on, as if they were numbered from
    there."""

    begins: tuple[int, ...]
    patterns: tuple[Pattern, ...]

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """Of the model, to be built; ascending."""
        runs = zip(self.begins, self.patterns, strict=True)
        return tuple(begin + layer for begin, pattern in runs for layer in pattern.layers)

    def repeats(self, ends: Sequence[Tensor], leafs: Leafs) -> list[Repeats]:
        """How a graph of these layers is to be read; `ends` and `leafs` are the whole model's."""
        found, first = [], 0
        for begin, pattern in zip(self.begins, self.patterns, strict=True):
            last = first + len(pattern.layers)
            part = leafs.part(begin, begin + len(pattern.order))
            found.append(Repeats(pattern, ends[first:last], part, begin))
            first = last
        return found


@dataclass(frozen=True)
class Repeats:
    """How a graph of some layers is to be read. `ends`: of each layer that is built, the node that the next one reads, behind
    which that begins, or what comes after all layers; the last one's may be missing. `begin`: the number in the model of
    the first layer, from which on `pattern` and `leafs` number them."""

    pattern: Pattern
    ends: Sequence[Tensor]
    leafs: Leafs
    begin: int = 0

    def layers_of(self, nodes: Iterable[Tensor]) -> list[int]:
        """For each node, in the order of the graph, the position of its layer; len(ends) of those behind the last end.
        Raises IrregularError."""
        found, at, ends = [], 0, {id(end): i for i, end in enumerate(self.ends)}
        for node in nodes:
            found.append(at)
            end = ends.get(id(node))
            if end is not None:
                if end != at:
                    raise IrregularError(f"layer {end} ends within layer {at}")
                at += 1
        if at != len(self.ends) or len(self.pattern.layers) - at not in (0, 1):
            raise IrregularError(f"{at} ends of {len(self.pattern.layers)} layers are there")
        return found
