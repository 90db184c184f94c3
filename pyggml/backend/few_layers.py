"""Schedules of a model's graphs, made from a few of its layers where those can stand for all.

Owns what is known of each form of graph: which layers to build.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Generic, NamedTuple, TypeVar

from pyggml.backend.repeats import patterns
from pyggml.backend.scheduler import Schedule, Scheduler
from pyggml.graph import Graph, IrregularError, Leafs, Pattern, Runs
from pyggml.tensor import Tensor

T = TypeVar("T")


class LayeredGraph(NamedTuple, Generic[T]):
    """A graph of some layers of a model. `built`: what its maker wants to have beside the schedule. `ends`: of each layer,
    the node that the next one reads, or what comes after the last; that one's may be missing. A layer's nodes stand behind
    the end of the one before it."""

    built: T
    graph: Graph
    ends: Sequence[Tensor]


class FewLayers(Generic[T]):
    """`leafs[layer]`: the tensors that a layer of the model has to itself, its weights and its part of the cache, in one
    order for layers that are alike. They are placed, and stay where they are."""

    def __init__(self, scheduler: Scheduler, leafs: Sequence[Sequence[Tensor]]) -> None:
        self._scheduler = scheduler
        self.leafs = Leafs(leafs)
        self._patterns: dict[Hashable, dict[int, list[Pattern]]] = {}  # what is left to be tried, of each run of layers

    def schedule(self, form: Hashable, build: Callable[[Sequence[int]], LayeredGraph[T]]) -> tuple[T, Schedule]:
        """A schedule for the graph of all layers. `build(layers)` builds that of some, numbers in ascending order.

        `form`: what the graph's nodes and the likeness of layers depend on, but for the size of their shapes. The first
        graph of a form is built whole and tells which layers are alike. Raises as `Scheduler.schedule`.
        """
        known = form in self._patterns
        while (runs := self.pattern(form)) is not None:
            made = build(runs.layers)
            made.graph.runs = runs.repeats(made.ends, self.leafs)
            try:
                schedule = self._scheduler.schedule(made.graph)
                schedule.begin()
                return made.built, schedule
            except IrregularError as error:
                self._give_up(form, error.run)
        made = build(range(len(self.leafs.tensors)))
        if not known:
            self._patterns[form] = patterns(made.graph, made.ends, self.leafs)
        return made.built, self._scheduler.schedule(made.graph)

    def _give_up(self, form: Hashable, run: int | None) -> None:
        """The pattern that was tried last: of this run; of all where it is not known which one failed."""
        left = self._patterns[form]
        tried = [some for begin, some in left.items() if len(some) > 1 and run in (begin, None)]
        for some in tried or [some for some in left.values() if len(some) > 1]:
            del some[0]

    def pattern(self, form: Hashable) -> Runs | None:
        """Which layers are built for a graph of this form; None: all, or it is not known yet."""
        left = self._patterns.get(form, {})
        if all(len(some) == 1 for some in left.values()):
            return None
        return Runs(tuple(left), tuple(some[0] for some in left.values()))
