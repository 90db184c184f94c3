"""Graphs of a few layers that stand for many: which layers of a model are alike, and whether the places of results repeat.

Owns both questions; knows no model (a layer is what lies between two of the `ends`) and no kernel. A model's layers are
built, placed and lowered one by one, and come out alike but for the addresses of their weights and of their part of the
cache. So it is enough to build some of them, if all that decisions depend on is the same before and after each layer that
is left out: the holes in the compute buffer and where the layer's input lies (here), what lowering remembers and which
work memory is taken (the backend's business). That is checked, never assumed: after IrregularError all layers are built.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from pyggml.alloc import Allocation, Arena, Step
from pyggml.graph import Graph, IrregularError, Leafs, Pattern, Repeats
from pyggml.tensor import Flag, Tensor

# ---- which layers are alike


def patterns(graph: Graph, ends: Sequence[Tensor], leafs: Leafs) -> dict[int, list[Pattern]]:
    """From a graph of all layers: for each run of layers that have one device, by its first layer, which of them to build, the
    fewest first, all at last."""
    count = len(leafs.tensors)
    whole = Pattern(tuple(range(count)), tuple(range(count)), 1, count)
    try:
        kinds = _kinds(graph, Repeats(whole, ends, leafs))
    except IrregularError:
        return {0: [_alone(count)]}
    homes = [{id(t.buffer and t.buffer.device) for t in of_layer} for of_layer in leafs.tensors]
    begins = [i for i in range(count) if not i or homes[i] != homes[i - 1]]
    return {
        begin: _patterns_of_run(kinds[begin:end], end < count or len(ends) == count)
        for begin, end in zip(begins, [*begins[1:], count], strict=True)
    }


def _alone(count: int) -> Pattern:
    """Each layer stands for itself."""
    return Pattern(tuple(range(count)), tuple(range(count)), count, count)


def _patterns_of_run(kinds: Sequence[int], ended: bool) -> list[Pattern]:
    """The first layer stands for itself, and so does the last if no other is like it, or it has no end (not `ended`), or
    another device makes that."""
    count = len(kinds)
    found = []
    for alike in (True, False):
        if alike and not (ended and kinds[-1] in kinds[1:-1]):
            continue
        middle = range(1, count if alike else count - 1)
        first = {kinds[i]: i for i in reversed(middle)}
        last = {kinds[i]: i for i in middle}
        # what a kind does when it comes first (a table that later layers share) or last may differ: the second try. Results
        # may lie in one of two places by turns: two layers make a unit then
        for begin, end in ((1, middle.stop), (max(first.values(), default=0) + 1, min(last.values(), default=0))):
            found += [_pattern(kinds, begin + (end - begin) % unit, end, unit) for unit in (1, 2) if begin < end]
    return [*(pattern for pattern in found if len(pattern.layers) < count), _alone(count)]


def _pattern(kinds: Sequence[int], begin: int, end: int, unit: int) -> Pattern:
    """The layers from `begin` to `end` - 1 by those of one unit of each sort."""
    starts = range(begin, end, unit)
    sorts = {i: tuple(kinds[i : i + unit]) for i in starts}
    stand = {sorts[i]: i for i in reversed(starts)}
    stands = {i + k: stand[sorts[i]] + k for i in starts for k in range(unit)}
    layers = sorted({*range(begin), *stands.values(), *range(end, len(kinds))})
    position = {layer: i for i, layer in enumerate(layers)}
    order = [position[stands.get(i, i)] for i in range(len(kinds))]
    return Pattern(tuple(layers), tuple(order), begin, begin + unit * len(stand), unit)


def _kinds(graph: Graph, repeats: Repeats) -> list[int]:
    """A number for each layer, the same for those whose nodes are the same but for their layer's own leafs."""
    layer_of, ends, leafs = repeats.layers_of(graph.nodes), repeats.ends, repeats.leafs
    place: dict[int, tuple[int, int]] = {}
    fresh: dict[int, int] = {}  # what a copy is made to -> the layer that makes it
    forms: list[list[Any]] = [[] for _ in range(len(leafs.tensors) + 1)]

    def reference(t: Tensor, layer: int) -> tuple[object, ...]:
        at = place.get(id(t))
        if at is not None and at[0] == layer:
            return "node", at[1]
        if layer and t is ends[layer - 1]:
            return ("input",)
        number = leafs.number[layer].get(id(t)) if layer < len(leafs.number) else None
        if number is not None:
            return "leaf", number, t.type, t.ne, t.nb, id(t.buffer and t.buffer.device)
        given = at is not None or t.buffer is not None or t.flags & Flag.INPUT
        if not given and fresh.setdefault(id(t), layer) == layer:
            return "destination", t.type, t.ne, t.nb, t.flags
        return "shared", id(t)

    for node, layer in zip(graph.nodes, layer_of, strict=True):
        refers = tuple(None if t is None else reference(t, layer) for t in (node.view_src, *node.src))
        place[id(node)] = layer, len(forms[layer])
        forms[layer].append((node.op, node.op_params, node.type, node.ne, node.nb, node.flags, node.view_offs, refers))
    numbers: dict[tuple[Any, ...], int] = {}
    return [numbers.setdefault(tuple(form), len(numbers)) for form in forms[: len(leafs.tensors)]]


# ---- whether the places of results repeat


class PlaceWatch:
    """Follows the placing of a graph's results; `after` as alloc.place_tensors has it."""

    def __init__(self, repeats: Repeats, steps: Sequence[Step], arena: Arena) -> None:
        self.repeats, self.steps, self.arena = repeats, steps, arena
        self.layer_of = repeats.layers_of(step.result for step in steps)
        self.states: dict[int, Any] = {}
        self.after = {id(end): partial(self._behind, i) for i, end in enumerate(repeats.ends)}

    def _behind(self, layer: int) -> None:
        self.states[layer] = self.arena.state()

    def check(self, places: dict[int, Allocation]) -> None:
        """Raises IrregularError unless each unit of layers that is repeated leaves the buffer as it found it, its input's
        place taken by its result, and what it makes is read nowhere else."""
        pattern, ends = self.repeats.pattern, self.repeats.ends
        boundaries = range(pattern.first - 1, pattern.last, pattern.unit)
        found = {(self.states[i], places.get(id(ends[i]))) for i in boundaries if i < len(ends)}
        if len(found) != 1 or None in found.pop():
            raise IrregularError("the compute buffer is not the same before and after a layer")
        made: dict[int, int] = {}
        last: dict[int, tuple[int, Tensor]] = {}
        for step, layer in zip(self.steps, self.layer_of, strict=True):
            for t in step.reads:
                root = t.view_src or t
                origin = made.get(id(root))
                if origin is None or origin == layer or (origin == layer - 1 and root is ends[origin]):
                    continue
                last[id(root)] = layer, root
                if pattern.repeated(origin) and pattern.unit_of(origin) != pattern.unit_of(layer):
                    raise IrregularError(f"{root.name!r} is read in a later layer")
            made.setdefault(id(step.result.view_src or step.result), layer)
        # what the layers before share with the repeated ones must be there to the end
        for key, (layer, root) in last.items():
            stays = root.buffer is not None or root.flags & (Flag.INPUT | Flag.OUTPUT)
            if made[key] < pattern.first and pattern.repeated(layer) and not stays:
                raise IrregularError(f"{root.name!r} is read in a repeated layer last")
