"""Lowers a graph whose layers stand for more of them (repeats.py) to CUDA launches: each layer's once, then copied for the
others with the addresses of their weights and caches.

Owns the proof that the copies do what lowering all layers would have made: a layer finds nothing remembered, nor leaves
anything to be found, that a further layer in its place would change. Launches run in order on one stream, so that nothing
else ties a layer to its neighbours. The same for the CPU's steps: layers.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyggml.graph import Graph, IrregularError
from pyggml.kernels.cuda.launch_args import words_of
from pyggml.lowering.cuda import Builder, Packed
from pyggml.lowering.hazards import Span
from pyggml.lowering.relied import Relied
from pyggml.tensor import Tensor

LOWEST = 1 << 40
"""Addresses from here on are told from sizes and strides by their value. Those of GPUs lie higher, as hosts' do."""


class LayerBuilder(Builder):
    def __init__(
        self, cc: tuple[int, int], multiprocessors: int, shared_limit: int, graph: Graph, nodes: Sequence[Tensor]
    ) -> None:
        """`nodes` in the order of their numbers. Raises IrregularError."""
        super().__init__(cc, multiprocessors, shared_limit)
        assert graph.repeats is not None
        self._repeats = graph.repeats
        self._pattern = graph.repeats.pattern
        layers = dict(zip(map(id, graph.nodes), graph.repeats.layers_of(graph.nodes), strict=True))
        self._layer_of = [layers[id(node)] for node in nodes]
        self._layer = 0  # position of the one being lowered
        self._starts = [0]  # first launch of each, and of what comes after all layers
        self._written: list[Span] = []  # by the unit being lowered
        self._relied = Relied(self._pattern)

    def begin_group(self, nodes: Sequence[Tensor], number: int) -> None:
        super().begin_group(nodes, number)
        while self._layer < self._layer_of[number]:
            self._layer += 1
            self._starts.append(len(self.launches))
            if self._pattern.unit_of(self._layer) == self._layer:
                self._written.clear()

    def end_group(self, nodes: Sequence[Tensor]) -> None:
        if self._layer_of[self.number] != self._layer:
            raise IrregularError(f"{nodes[-1].name!r} is computed together with a node of the layer before")
        super().end_group(nodes)
        self._written += map(_span, nodes)

    def reach(self, number: int, most: int) -> int:
        """As many as belong to the same layer: in another place of the model another one would follow."""
        layers = self._layer_of[number : number + most]
        return sum(layer == layers[0] for layer in layers)

    def remember(self, key: Any, value: Any, source: Tensor) -> None:
        super().remember(key, value, source)
        self._relied.made(key, self._layer)
        if self._pattern.repeated(self._layer) and not self._is_new(source):
            # a layer that comes before this one in the model may have made the same
            raise IrregularError(f"what is made of {source.name!r} may serve several layers")

    def _is_new(self, source: Tensor) -> bool:
        """Whether its bytes are this unit's own, or were written by it."""
        assert self.node is not None
        low, high = _span(source)
        own = self._repeats.leafs.apart[self._pattern.layers[self._layer]]
        written = (*self._written, _span(self.node))
        return id(source.view_src or source) in own or any(a < high and low < b for a, b in written)

    def remembered(self, key: Any) -> Any:
        found = super().remembered(key)
        if found is not None:
            self._relied.found(key, found, self._layer)
        return found

    def check(self) -> None:
        """Raises IrregularError."""
        pattern, starts = self._pattern, [*self._starts, len(self.launches)]
        if len(self._starts) - len(pattern.layers) not in (0, 1) or any(a == b for a, b in pairwise(starts)):
            raise IrregularError("a layer without launches")
        self._relied.check(self._memo.remembered)
        self._hold_scratch(starts)

    def _hold_scratch(self, starts: list[int]) -> None:
        """Work memory that repeated layers share lives to the last of them. Raises IrregularError where one keeps some for
        the next."""
        pattern = self._pattern
        for piece in self._pieces.values():
            first, last = (int(np.searchsorted(starts, launch, "right")) - 1 for launch in (piece.first, piece.last))
            if pattern.repeated(first) and pattern.unit_of(first) != pattern.unit_of(last):
                raise IrregularError("work memory is kept from one layer to the next")
            if first < pattern.first and pattern.repeated(last):
                piece.last = starts[pattern.last] - 1

    # ---- the launches of all layers

    def pack(self) -> Packed:
        few, bounds = super().pack(), [*self._starts, len(self.launches)]
        first_of = np.append(few.first, len(few.values))[bounds]  # first word of each layer, and the end
        order = self._order()
        parts = [slice(first_of[i], first_of[i + 1]) for i in order]
        values = np.concatenate([few.values[part] for part in parts])
        layer_of = np.repeat(np.arange(len(order)), np.diff(first_of)[order])  # of each word
        relative = np.zeros(len(few.values), np.bool_)
        relative[few.relative] = True
        leaf = self._leafs(few, bounds)
        numbers = np.zeros(len(few.values), np.bool_)
        numbers[self._node_numbers(few)] = True

        def of_all(marks: NDArray[Any]) -> NDArray[Any]:
            return np.concatenate([marks[part] for part in parts])

        leafs = of_all(leaf)
        moved = np.flatnonzero(leafs >= 0)
        layers, stand = layer_of[moved], np.array([*self._pattern.layers, 0])[np.array(order)]
        addresses = self._repeats.leafs.addresses
        values[moved] += addresses[layers, leafs[moved]] - addresses[stand[layers], leafs[moved]]
        told = np.flatnonzero(of_all(numbers))
        few_nodes, all_nodes = self._first_nodes(order)
        values[told] += (all_nodes - few_nodes[order])[layer_of[told]]
        launches = np.concatenate([np.arange(bounds[i], bounds[i + 1]) for i in order])
        sizes = np.diff(np.append(few.first, len(few.values)))[launches]
        heads = [few.heads[i] for i in launches.tolist()]
        return Packed(heads, np.cumsum(sizes) - sizes, values, np.flatnonzero(of_all(relative)))

    def _order(self) -> list[int]:
        """Position of the layer for each part of the plan."""
        behind = len(self._starts) - len(self._pattern.layers)  # whether something comes after all layers
        return [*self._pattern.order, *[len(self._pattern.layers)] * behind]

    def _leafs(self, few: Packed, bounds: list[int]) -> NDArray[np.int64]:
        """For each word of a repeated layer the number of the layer's leaf that it is an address in; else -1."""
        pattern, found = self._pattern, np.full(len(few.values), -1, np.int64)
        first = few.first.tolist()
        for i in range(pattern.first, pattern.last):
            at = np.array(
                [
                    first[j] + k
                    for j in range(bounds[i], bounds[i + 1])
                    for k in words_of(self.launches[j].of).longs
                    if self.launches[j].args[k].__class__ is int
                ],
                np.int64,
            )
            found[at] = self._repeats.leafs.spans(pattern.layers[i]).numbers(few.values[at], LOWEST)
        return found

    def _node_numbers(self, few: Packed) -> list[int]:
        first = few.first.tolist()
        return [
            first[j] + k
            for j, launch in enumerate(self.launches)
            for k in words_of(launch.of).node_numbers
            if launch.args[k]
        ]

    def _first_nodes(self, order: list[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The number of each layer's first node: among those that are lowered, and in all layers."""
        counts = np.bincount(self._layer_of, minlength=len(self._pattern.layers) + 1)
        of_all = counts[order]
        return np.cumsum(counts) - counts, np.cumsum(of_all) - of_all

    def where(self) -> Callable[[int], tuple[int, str]]:
        order, layers, begin = self._order(), self._pattern.layers, self._repeats.begin
        few, all_nodes = self._first_nodes(order)
        end = int(all_nodes[-1]) + self._layer_of.count(order[-1])

        def where(number: int) -> tuple[int, str]:
            if number >= end:
                raise IndexError(f"node {number} of {end}")
            layer = int(np.searchsorted(all_nodes, number, "right")) - 1
            stands = layers[order[layer]] if order[layer] < len(layers) else layer
            of = f" (in layer {begin + layer}, for which layer {begin + stands} stands)" * (stands != layer)
            return int(few[order[layer]] + number - all_nodes[layer]), of

        return where

    def buffers(self, nodes: Sequence[Tensor]) -> list[Any]:
        return [*super().buffers(nodes), self._repeats.leafs.buffers]


def _span(tensor: Tensor) -> Span:
    return tensor.data, tensor.data + tensor.nbytes
