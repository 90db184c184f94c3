"""Lowers a graph whose layers stand for more of them (repeats.py): each layer's steps once, then copied for the others with
the addresses of their weights and caches.

Owns the proof that the copies are what lowering all layers would have made, word for word: a layer must begin and end at a
barrier, and find nothing remembered, nor leave anything to be found, that a further layer in its place would change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyggml.graph import Graph, IrregularError
from pyggml.lowering.cpu import Builder, Scratch, WorkTensor
from pyggml.lowering.relied import Relied
from pyggml.lowering.spans import first_fit
from pyggml.lowering.table import StepTable
from pyggml.steps import offset
from pyggml.tensor import Tensor

INDEX = offset("index") // 8


@dataclass(slots=True)
class _Piece:
    """Work memory from one barrier to another, as they are counted, and from one layer to another. `again`: that of the
    last layer, which is lowered for another one."""

    scratch: Scratch
    again: bool
    first: int
    since: int
    last: int = 0
    until: int = 0


class LayerBuilder(Builder):
    def __init__(self, n_threads: int, graph: Graph) -> None:
        """Raises IrregularError."""
        assert graph.repeats is not None
        self._repeats = graph.repeats
        self._pattern = graph.repeats.pattern
        self._layer_of = dict(zip(map(id, graph.nodes), graph.repeats.layers_of(graph.nodes), strict=True))
        self._layer = 0  # position of the one being lowered
        self._starts = [0]  # first step of each, and of what comes after all layers
        self._relied = Relied(self._pattern)
        self._leafs = [graph.repeats.leafs.spans(layer) for layer in self._pattern.layers]
        self._pieces: list[_Piece] = []
        self._last_addresses: dict[int, int] = {}  # of work memory by id(), in the last layer, where they differ
        self._order: list[int] = []  # position of the layer for each part of the plan
        self._sizes: NDArray[np.intp] = np.zeros(0, np.intp)  # steps of each of those
        self._steps_of: NDArray[np.intp] = np.zeros(0, np.intp)
        super().__init__(n_threads)

    @property
    def node(self) -> Tensor | None:
        return self._node

    @node.setter
    def node(self, node: Tensor | None) -> None:
        self._node = node
        while node is not None and self._layer < self._layer_of[id(node)]:
            self._layer += 1
            self._starts.append(len(self.steps))

    def remember(self, key: Any, value: Any, source: Tensor) -> None:
        super().remember(key, value, source)
        self._relied.made(key, self._layer)
        if not self._pattern.repeated(self._layer):
            return
        if not self._is_new(key, source):  # a layer that comes before this one in the model may have made the same
            raise IrregularError(f"what is made of {source.name!r} may serve several layers")

    def _is_new(self, key: Any, source: Tensor) -> bool:
        """Whether what is made of it is this unit's own: it was written here, or it, or what else the key names, is a leaf that no
        other layer has."""
        start = self._starts[self._pattern.unit_of(self._layer)]
        if isinstance(source, WorkTensor):
            return source.scratch.first >= start
        low, high = source.data, source.data + source.nbytes
        for number in range(len(self.steps) - 1, start - 1, -1):  # mostly a step or two before
            t = self.steps[number].dst
            if t is not None and low < t.data + t.nbytes and t.data < high:
                return True
        leafs, layer = self._repeats.leafs, self._pattern.layers[self._layer]
        return id(source.view_src or source) in leafs.apart[layer] or any(part in leafs.own[layer] for part in key)

    def remembered(self, key: Any) -> Any:
        found = super().remembered(key)
        if found is not None:
            self._relied.found(key, found, self._layer)
        return found

    def check(self) -> None:
        """Raises IrregularError."""
        pattern, starts = self._pattern, [*self._starts, len(self.steps)]
        behind = len(self._starts) - len(pattern.layers)  # whether something comes after all layers
        if behind not in (0, 1) or any(a == b for a, b in pairwise(starts)):
            raise IrregularError("a layer without steps")
        if not behind:
            self.barrier()
        for layer in range(pattern.first - 1, pattern.last, pattern.unit):
            end, last = self._repeats.ends[layer], self.steps[starts[layer + 1] - 1]
            reads = self.steps[starts[layer + 1]].src if starts[layer + 1] < len(self.steps) else [end]
            if not last.sync or last.dst is not end or not any(_overlap(end, t) for t in reads):
                raise IrregularError(f"{end.name!r} is not what a layer ends with and the next begins with")
        self._relied.check(self._memo.remembered)
        self._order = [*pattern.order, *[len(pattern.layers)] * behind]
        begins = np.array(starts)
        self._sizes = (begins[1:] - begins[:-1])[self._order]
        behind_each = self._sizes.cumsum()
        self._steps_of = np.arange(behind_each[-1]) + (begins[self._order] + self._sizes - behind_each).repeat(
            self._sizes
        )
        self._find_pieces()

    def _find_pieces(self) -> None:
        """How long work memory lives. Where the last layer is like one that stands for others, that one is gone through
        twice: in the last layer, memory that layers share is free again after its last use. Raises IrregularError."""
        pattern, starts = self._pattern, [*self._starts, len(self.steps)]
        runs = [(layer, False) for layer in range(pattern.last)]
        if pattern.last == len(pattern.layers):
            runs += [(layer, True) for layer in pattern.order[-pattern.unit :]]
        runs += [(layer, False) for layer in range(pattern.last, len(starts) - 1)]
        pieces: dict[tuple[int, bool], _Piece] = {}
        barriers = 0  # so far
        for layer, again in runs:
            unit = len(starts) if again else pattern.unit_of(layer)
            begin = starts[pattern.unit_of(layer)]
            for step in self.steps[starts[layer] : starts[layer + 1]]:
                for scratch in step.held:
                    key = id(scratch), again and scratch.first >= begin
                    piece = pieces.get(key)
                    if piece is None:
                        piece = pieces[key] = _Piece(scratch, key[1], unit, barriers)
                    piece.last, piece.until = unit, barriers
                barriers += step.sync
        for piece in pieces.values():
            if pattern.repeated(piece.first) and piece.first != piece.last:
                raise IrregularError("work memory is kept from one layer to the next")
            if piece.first < pattern.first and pattern.repeated(piece.last):
                raise IrregularError("work memory that layers share ends with one of them")
        self._pieces = list(pieces.values())

    def place(self) -> int:
        addresses, size = first_fit(((p.scratch.size, p.since, p.until) for p in self._pieces), 64)
        for piece, address in zip(self._pieces, addresses, strict=True):
            if piece.again:
                if address != piece.scratch.address:
                    self._last_addresses[id(piece.scratch)] = address
            else:
                piece.scratch.address = address
        return size

    def count(self) -> int:
        return len(self._steps_of)

    def where(self) -> Callable[[int], tuple[int, str]]:
        layers, order, steps_of, sizes = self._pattern.layers, self._pattern.order, self._steps_of, self._sizes
        begin = self._repeats.begin

        def where(number: int) -> tuple[int, str]:
            layer = int(np.searchsorted(np.cumsum(sizes), number, "right"))
            stands = layers[order[layer]] if layer < len(order) else layer
            where = f" (in layer {begin + layer}, for which layer {begin + stands} stands)" * (stands != layer)
            return int(steps_of[number]), where

        return where

    def buffers(self) -> list[Any]:
        return [super().buffers(), self._repeats.leafs.buffers]

    def records(self, arena: int, status: int) -> StepTable:
        few, table = super().records(arena, status), StepTable(self.count(), clear=False)
        np.take(few.words, self._steps_of, axis=0, out=table.words, mode="clip")  # "raise" copies twice
        table.words[:, INDEX] = np.arange(self.count())
        pattern, addresses = self._pattern, self._repeats.leafs.addresses
        starts = [*self._starts, len(self.steps)]
        first_of = self._sizes.cumsum() - self._sizes  # the first step of each layer in the table
        order = np.array(self._order)
        buffer_ids = self._repeats.leafs.buffer_ids
        for i in range(pattern.first, pattern.last):
            moved = [
                (number, slot, leaf)
                for number, step in enumerate(self.steps[starts[i] : starts[i + 1]])
                for slot, t in enumerate((step.dst, *step.src))
                if t is not None and id(t.buffer) in buffer_ids and (leaf := self._leafs[i].find(t)) is not None
            ]
            layers = np.flatnonzero(order == i)
            numbers, slots, leafs = np.array(moved, np.intp).reshape(-1, 3).T
            shifts = addresses[layers][:, leafs] - addresses[pattern.layers[i], leafs]
            table.operands[first_of[layers][:, None] + numbers, slots, 0] += shifts
        if self._last_addresses:
            for layer in range(len(pattern.order) - pattern.unit, len(pattern.order)):
                self._correct_last(table, int(first_of[layer]), pattern.order[layer], arena)
        return table

    def _correct_last(self, table: StepTable, first: int, layer: int, arena: int) -> None:
        """Where work memory of the last unit lies elsewhere than in those like it: a layer whose steps begin at `first`."""
        moved = {key: address + arena for key, address in self._last_addresses.items()}
        end = self._starts[layer + 1] if layer + 1 < len(self._starts) else len(self.steps)
        for number, step in enumerate(self.steps[self._starts[layer] : end], first):
            for j, scratch in enumerate(step.scratch):
                if id(scratch) in moved:
                    table.steps["scratch"][number, j] = moved[id(scratch)]
            for slot, t in enumerate((step.dst, *step.src)):
                if isinstance(t, WorkTensor) and id(t.scratch) in moved:
                    table.operands[number, slot, 0] = moved[id(t.scratch)]


def _overlap(a: Tensor, b: Tensor | None) -> bool:
    return b is not None and a.data < b.data + b.nbytes and b.data < a.data + a.nbytes
