"""The order in which nodes are computed. Owns topological order and use counts; knows no device and no kernel."""

from __future__ import annotations

from collections import Counter
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
    compute = int(Flag.COMPUTE)
    for output in outputs:
        stack: list[Tensor | None] = [output]
        while stack:
            tensor = stack.pop()
            if tensor is not None:
                if id(tensor) in seen:  # done, or a cast, which is its own second source
                    continue
                seen.add(id(tensor))
                if tensor.src or tensor.view_src is not None:
                    stack += (tensor, None)  # None: the sources of the one below it are done
                    for s in (tensor.view_src, *tensor.src[::-1]):
                        if s is not None and id(s) not in seen:
                            stack.append(s)
                    continue
            else:
                tensor = stack.pop()
                assert tensor is not None
            if tensor.op == NONE_OP and not (tensor.flags & Flag.PARAM):
                graph.leafs.append(tensor)
            else:
                tensor.flags |= compute
                graph.nodes.append(tensor)
    graph.uses.update(Counter([id(s) for node in graph.nodes for s in node.src if s is not None]))
    return graph
