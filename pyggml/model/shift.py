"""A full context goes on: the cells of its oldest tokens are given to later ones, whose keys are turned to their new places.

Owns the graph that moves cells; knows no token and no text. Where llama.cpp gives cells other positions and turns their
keys in place (llama-kv-cache.cpp: build_graph_shift), cells here move with their positions: the cell of a token is its
position. The numbers are the same, but where positions are scaled with a magnitude (yarn, attn_factor): keys keep
theirs, and get it anew at every shift there.
"""

from __future__ import annotations

from collections.abc import Callable

from pyggml import ops
from pyggml.dtypes import SIZES, GGMLType, row_size
from pyggml.graph import Graph, build_forward
from pyggml.model.kv_cache import KVCache, rotated
from pyggml.tensor import Flag, Tensor

Rotate = Callable[[Tensor, Tensor, int], Tensor]
"""(keys (head, n_head, n), positions, layer) -> keys turned by these positions."""


def shift_graph(cache: KVCache, rotate: Rotate, first: int, end: int, by: int) -> tuple[Graph, Tensor]:
    """Cells from `first` to before `end` go `by` cells back. -> the graph, and its input: I32, each cell's -by."""
    assert 0 < by <= first <= end <= cache.n_cells, (first, end, by)
    n = end - first
    turns = Tensor(GGMLType.I32, (n,), flags=Flag.INPUT, name="k_shift")
    order: list[Tensor] = []
    for il in range(len(cache.k)):
        k = cells(cache.k[il], first, n, cache.head_k, cache.n_head_kv)
        target = cells(cache.k[il], first - by, n, cache.head_k, cache.n_head_kv)
        if k.type not in (GGMLType.F32, GGMLType.F16):
            k = ops.cpy(k, Tensor(GGMLType.F32, k.ne, name=f"k_shift-{il} (f32)"))
        plain = rotated(k, cache.k_rotation[il])  # it is its own inverse
        order.append(k := rotated(rotate(plain, turns, il), cache.k_rotation[il]))
        order.append(ops.cpy(k, target, name=f"k_shifted-{il}"))
        source, target = (values(cache, il, begin, n) for begin in (first, first - by))
        order.append(kept := ops.cont(source, name=f"v_shift-{il}"))  # both stretches may overlap
        order.append(ops.cpy(kept, target, name=f"v_shifted-{il}"))
    return build_forward(order), turns


def cells(cache: Tensor, first: int, n: int, head: int, n_head: int) -> Tensor:
    """(head, n_head, n): what lies in n cells of keys."""
    nb1, nb2 = row_size(cache.type, head), cache.nb[1]
    return ops.view(cache, (head, n_head, n), (nb1, nb2, nb2 * n), first * nb2)


def values(cache: KVCache, il: int, first: int, n: int) -> Tensor:
    """What lies in n cells of values: (elements, n), or (n, elements) where V lies transposed."""
    v = cache.v[il]
    if not cache.transposed_v:
        return ops.view(v, (v.ne[0], n), (v.nb[1], v.nb[1] * n), first * v.nb[1])
    size, row = SIZES[v.type].type_size, row_size(v.type, cache.n_cells)
    return ops.view(v, (n, v.ne[0]), (row, row * v.ne[0]), first * size)
