"""The order in which nodes are computed. Owns topological order and use counts; knows no device and no kernel."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from pyggml.tensor import Flag, Tensor

NONE_OP = 0


@dataclass
class Graph:
    """`nodes` have an op and stand after all that they read; `leafs` hold data. `uses` counts readers by id()."""

    nodes: list[Tensor] = field(default_factory=list)
    leafs: list[Tensor] = field(default_factory=list)
    uses: dict[int, int] = field(default_factory=dict)


def build_forward(outputs: Iterable[Tensor]) -> Graph:
    """Everything that `outputs` need, in the order in which a reader of the sources meets it: left source first.

    Each node is marked Flag.COMPUTE. Outputs are visited in turn, so a write (SET_ROWS, CPY) that is listed before
    its reader is computed before it.
    """
    graph = Graph()
    seen: set[int] = set()
    for output in outputs:
        stack: list[tuple[Tensor, bool]] = [(output, False)]
        while stack:
            tensor, sources_done = stack.pop()
            if sources_done:
                if tensor.op == NONE_OP and not (tensor.flags & Flag.PARAM):
                    graph.leafs.append(tensor)
                else:
                    tensor.flags |= Flag.COMPUTE
                    graph.nodes.append(tensor)
                continue
            if id(tensor) in seen:  # done, or a cast, which is its own second source
                continue
            seen.add(id(tensor))
            stack.append((tensor, True))
            needs = [s for s in tensor.src if s is not None]
            if tensor.view_src is not None:
                needs.append(tensor.view_src)
            stack.extend((s, False) for s in reversed(needs) if id(s) not in seen)
    for node in graph.nodes:
        for s in node.src:
            if s is not None:
                graph.uses[id(s)] = graph.uses.get(id(s), 0) + 1
    return graph
