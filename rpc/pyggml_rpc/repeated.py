"""The body of GRAPH_COMPUTE for a graph whose layers stand for more of them (pyggml/backend/repeats.py): the records of each
layer are made once, and copied for the others with the numbers and addresses that they have there.

Owns the proof that these are the records which a graph of all layers would have, but for the names of nodes: what a layer
that stands for others reads is its own, the result of the layer before, or comes before all of those.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pyggml.graph import Graph, IrregularError
from pyggml.ops import VIEW_OPS, Op
from pyggml.tensor import MAX_NAME, Flag, Tensor, Usage
from pyggml_rpc.records import COMPUTE, RecordOf, Records, write_tensors
from pyggml_rpc.wire import Command, Protocol

Numbers = NDArray[np.int64]


class _Parts:
    """The few layers' tensors, by the layer that a server meets them in first; what comes behind all layers is one more."""

    def __init__(self, graph: Graph) -> None:
        assert graph.repeats is not None
        self.repeats = repeats = graph.repeats
        self.pattern = repeats.pattern
        layers = repeats.layers_of(graph.nodes)
        named = [(node, layer) for node, layer in zip(graph.nodes, layers, strict=True) if node.op not in VIEW_OPS]
        self.nodes = [node for node, _ in named]
        self.layer_of = np.array([layer for _, layer in named], np.int64)
        self.tensors: dict[int, Tensor] = {}
        behind = bool(named) and named[-1][1] == len(self.pattern.layers)
        count = len(self.pattern.layers) + behind
        self.first = np.zeros(count + 1, np.int64)  # number of the first tensor of each part, and the end
        for node, layer in named:
            for t in (*node.src, node):
                if t is not None:
                    if t.view_src is not None:
                        self.tensors.setdefault(id(t.view_src), t.view_src)
                    self.tensors.setdefault(id(t), t)
            self.first[layer + 1 :] = len(self.tensors)
        self.reads = [
            (t, layer)
            for node, layer in named
            for source in node.src
            if source is not None
            for t in (source, source.view_src)
            if t is not None
        ]
        self._check(named)
        self.order = np.array([*self.pattern.order, *range(len(self.pattern.layers), count)], np.int64)
        if (np.diff(self.first) == 0).any():
            raise IrregularError("a layer of no tensors")

    def _check(self, named: Sequence[tuple[Tensor, int]]) -> None:
        """Raises IrregularError where a layer that stands for others is the first to name what they share."""
        own = [set[int]() for _ in self.first]
        for node, layer in named:
            own[layer].add(id(node))
            to = (
                node.view_src if node.op == Op.CPY else None
            )  # the layer's own unless it is a leaf, or comes from elsewhere
            if (
                to is not None
                and to.buffer is not None
                and to.buffer.usage is Usage.COMPUTE
                and not to.flags & Flag.INPUT
            ):
                own[layer].add(id(to))
        every, leafs = list(self.tensors.values()), self.repeats.leafs
        for layer in range(self.pattern.first, self.pattern.last):
            mine = own[layer] | leafs.own[self.pattern.layers[layer]] | {id(self.end_before(layer))}
            for t in every[self.first[layer] : self.first[layer + 1]]:
                root = t.view_src or t
                if id(root) not in mine:
                    raise IrregularError(f"{root.name!r} is read in a repeated layer first")

    def end_before(self, layer: int) -> Tensor | None:
        return self.repeats.ends[layer - 1] if layer else None


def write_repeated(protocol: Protocol, device: int, uid: int, graph: Graph, record_of: RecordOf) -> tuple[bytes, int]:
    """-> (the body, how many nodes it has). Raises IrregularError."""
    parts = _Parts(graph)
    first, order = parts.first, parts.order
    ids = {key: number for number, key in enumerate(parts.tensors, 1)}
    few = write_tensors(parts.tensors.values(), record_of, ids, _uses(graph, parts, ids))
    few_nodes = np.array([ids[id(node)] for node in parts.nodes], np.int64)
    few["flags"][few_nodes - 1] |= COMPUTE
    sizes = np.diff(first)[order]
    start = np.cumsum(sizes) - sizes  # of each part of the model, in all records
    rows = np.concatenate([np.arange(first[i], first[i + 1]) for i in order])
    part_of = np.repeat(np.arange(len(order)), sizes)
    records = few[rows]
    moved = _Moved(parts, ids, start)
    records["id"] = np.arange(1, len(records) + 1)
    records["src"] = moved.numbers(few["src"].astype(np.int64)[rows], part_of)
    records["view_src"] = moved.numbers(few["view_src"].astype(np.int64)[rows], part_of)
    _uses_of_ends(parts, ids, few, records, start)
    _place(parts, few, records, rows, part_of, record_of)
    counts = np.bincount(parts.layer_of, minlength=len(first) - 1)
    of_part = np.split(few_nodes, np.cumsum(counts)[:-1])
    nodes = np.concatenate([of_part[i] - first[i] + start[at] for at, i in enumerate(order)])
    head = protocol.pack(Command.GRAPH_COMPUTE, device=device, uid=uid, n_nodes=len(nodes))
    body = b"".join((head, nodes.astype("<u8").tobytes(), len(records).to_bytes(4, "little"), records.tobytes()))
    return body, len(nodes)


class _Moved:
    """What becomes of the numbers by which the few layers' records name each other."""

    def __init__(self, parts: _Parts, ids: dict[int, int], start: Numbers) -> None:
        self.parts, self.start = parts, start
        self.ends = np.array([ids.get(id(end), 0) for end in parts.repeats.ends], np.int64)

    def numbers(self, few: Numbers, part_of: Numbers) -> Numbers:
        """`few`: numbers that stand in the records of these parts of the model. Raises IrregularError."""
        first, order, start, pattern = self.parts.first, self.parts.order, self.start, self.parts.pattern
        at = part_of.reshape(-1, *[1] * (few.ndim - 1))
        own = order[at]  # the part of the few layers that the record is of
        named = np.searchsorted(first, few - 1, "right") - 1  # the one that the number is of
        ends = np.append(self.ends, np.zeros(len(order) + 1 - len(self.ends), np.int64))
        before = np.where(at > 0, ends[np.maximum(own - 1, 0)], 0)
        result = np.where(few == 0, 0, -1)
        result = np.where((few > 0) & (named == own), few - first[own] + start[at], result)
        early = (few > 0) & (named < own) & (named < pattern.first)
        result = np.where(early, few, result)
        previous = np.maximum(at - 1, 0)
        last = ends[order[previous]]  # of the layer that comes before in the model
        result = np.where(
            (few > 0) & (few == before) & (named < own), last - first[order[previous]] + start[previous], result
        )
        if (result < 0).any():
            raise IrregularError("a layer reads more than the result of the layer before it")
        return result


def _uses(graph: Graph, parts: _Parts, ids: dict[int, int]) -> dict[int, int]:
    """How often all layers read each tensor of those that no layer makes which stands for others."""
    pattern, uses = parts.pattern, dict(graph.uses)
    copies = Counter(pattern.order)
    for t, layer in parts.reads:
        if pattern.repeated(layer) and t is not parts.end_before(layer) and ids[id(t)] <= parts.first[pattern.first]:
            uses[id(t)] = uses.get(id(t), 0) + copies[layer] - 1
    return uses


def _uses_of_ends(parts: _Parts, ids: dict[int, int], few: Records, records: Records, start: Numbers) -> None:
    """The result of a layer is read by the layer behind it, which is not always the one that stands behind it here."""
    ends, order = parts.repeats.ends, parts.pattern.order
    numbers = [ids[id(end)] for end in ends]
    layers = {id(end): i for i, end in enumerate(ends)}
    inside = Counter([layer for t, layer in parts.reads if layers.get(id(t)) == layer])
    outside = [int(few["use_count"][number - 1]) - inside[i] for i, number in enumerate(numbers)]
    for at, i in enumerate(order):
        behind = order[at + 1] if at + 1 < len(order) else len(parts.pattern.layers)
        if i < len(ends) and behind - 1 < len(ends):
            records["use_count"][numbers[i] - parts.first[i] + start[at] - 1] = inside[i] + outside[behind - 1]


def _place(parts: _Parts, few: Records, records: Records, rows: Numbers, part_of: Numbers, record_of: RecordOf) -> None:
    """Give the tensors of layers that others stand for their own weights' and caches' addresses and names."""
    pattern, leafs = parts.pattern, parts.repeats.leafs
    tensors, leaf = list(parts.tensors.values()), np.full(len(few), -1, np.int64)
    for i in range(pattern.first, pattern.last):
        spans = leafs.spans(pattern.layers[i])
        for number in range(int(parts.first[i]), int(parts.first[i + 1])):
            t = tensors[number]
            if t.buffer is not None and id(t.buffer) in leafs.buffer_ids:
                found = spans.find(t)
                if found is not None:
                    leaf[number] = found
    at = np.flatnonzero(leaf[rows] >= 0)
    if not len(at):
        return
    most = max(map(len, leafs.tensors))
    places = np.zeros((len(leafs.tensors), most, 2), np.uint64)
    names = np.zeros((len(leafs.tensors), most), few["name"].dtype)
    for layer, of_layer in enumerate(leafs.tensors):
        for k, t in enumerate(of_layer):
            places[layer, k] = record_of(t)
            names[layer, k] = t.name.encode()[: MAX_NAME - 1]
    layers, numbers = part_of[at], leaf[rows[at]]
    stand = np.array([*pattern.layers, 0])[parts.order[layers]]
    records["data"][at] += places[layers, numbers, 1] - places[stand, numbers, 1]
    records["buffer"][at] = places[layers, numbers, 0]
    whole = records["name"][at] == names[stand, numbers]  # not those of views
    records["name"][at[whole]] = names[layers, numbers][whole]
