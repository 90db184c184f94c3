"""Tokens get other positions: graphs that turn the keys of cells, and that move cells.

Where the cells before are free they move, so that the cell of a token stays its place in the sequence; else they are
turned where they lie, as llama.cpp does it (llama-kv-cache.cpp: build_graph_shift). The numbers are the same, but
where positions are scaled with a magnitude (yarn, attn_factor): keys keep theirs, and get it anew at every shift
there. Owns these graphs.
"""

from __future__ import annotations

from collections.abc import Callable

from pyggml import ops
from pyggml.dtypes import SIZES, GGMLType, row_size
from pyggml.graph import Graph, build_forward
from pyggml.memory.hadamard import hadamard_transform
from pyggml.memory.kv_tensors import KVLayer, KVTensors, Turn
from pyggml.tensor import Flag, Tensor

Part = Callable[[KVTensors, int, int, int, int], Tensor]
"""(cache, layer's number in it, stream, first cell, n) -> what lies there."""


def move_graph(cache: KVTensors, stream: int, first: int, n: int, by: int) -> tuple[Graph, Tensor, int]:
    """`n` cells from `first` on go `by` cells back. -> the graph, its input I32 (n,), each cell's -by, which is read where keys
    know positions, and n."""
    assert 0 < by <= first and first + n <= cache.n_cells, (first, n, by)
    turns = Tensor(GGMLType.I32, (n,), flags=Flag.INPUT, name="k_shift")
    order: list[Tensor] = []
    for i in range(len(cache.k)):
        layer = cache.layers[i]
        for part, turn in _parts(layer):
            if turn is None:  # both stretches may overlap
                k = ops.cont(part(cache, i, stream, first, n), name=f"k_shift-{layer.il}")
            else:
                k = _turned(cache, i, part(cache, i, stream, first, n), turn, turns)
            order.append(k)
            order.append(ops.cpy(k, part(cache, i, stream, first - by, n), name=f"k_shifted-{layer.il}"))
        if cache.v[i] is None:
            continue
        source, target = (values(cache, i, stream, begin, n) for begin in (first, first - by))
        order.append(kept := ops.cont(source, name=f"v_shift-{cache.layers[i].il}"))  # both stretches may overlap
        order.append(ops.cpy(kept, target, name=f"v_shifted-{cache.layers[i].il}"))
    return build_forward(order), turns, n


def turn_graph(cache: KVTensors, stream: int, first: int, end: int) -> tuple[Graph, Tensor, int]:
    """Keys of the cells [first, end) are turned where they lie, those that know positions. -> as move_graph; the input is 0 for
    cells that stay."""
    n = end - first
    turns = Tensor(GGMLType.I32, (n,), flags=Flag.INPUT, name="k_shift")
    order: list[Tensor] = []
    for i in range(len(cache.k)):
        for part, turn in _parts(cache.layers[i]):
            if turn is not None:
                order.append(k := _turned(cache, i, part(cache, i, stream, first, n), turn, turns))
                order.append(ops.cpy(k, part(cache, i, stream, first, n), name=f"k_shifted-{cache.layers[i].il}"))
    return build_forward(order), turns, n


def _parts(layer: KVLayer) -> list[tuple[Part, Turn | None]]:
    """What lies in cells of keys, and how it is turned."""
    parts: list[tuple[Part, Turn | None]] = [(keys, layer.turn)]
    return [*parts, (beside, layer.turn_beside)] if layer.beside else parts


def _turned(cache: KVTensors, i: int, k: Tensor, turn: Turn, turns: Tensor) -> Tensor:
    """k (n_elements, n_head, n) of cells, turned by `turns`, as they are stored but for their type."""
    layer = cache.layers[i]
    rotation = cache.k_rotation[i] if k.ne[0] == layer.head_k else None
    if k.type not in (GGMLType.F32, GGMLType.F16):
        k = ops.cpy(k, Tensor(GGMLType.F32, k.ne, name=f"k_shift-{layer.il} (f32)"))
    plain = hadamard_transform(k, rotation)  # it is its own inverse
    return hadamard_transform(turn(plain, turns, cache.n_ctx), rotation)


def keys(cache: KVTensors, i: int, stream: int, first: int, n: int) -> Tensor:
    """(head, n_head, n): what lies in n cells of keys."""
    k, layer = cache.k[i], cache.layers[i]
    nb1, nb2 = row_size(k.type, layer.head_k), k.nb[1]
    offset = (stream * cache.n_cells + first) * nb2
    return ops.view(k, (layer.head_k, layer.n_head_kv, n), (nb1, nb2, nb2 * n), offset)


def beside(cache: KVTensors, i: int, stream: int, first: int, n: int) -> Tensor:
    """(beside, 1, n): what lies behind the keys of n cells."""
    k, layer = cache.k[i], cache.layers[i]
    offset = (stream * cache.n_cells + first) * k.nb[1] + row_size(k.type, layer.head_k * layer.n_head_kv)
    return ops.view(k, (layer.beside, 1, n), (k.nb[1], k.nb[1]), offset)


def values(cache: KVTensors, i: int, stream: int, first: int, n: int) -> Tensor:
    """What lies in n cells of values: (elements, n), or (n, elements) where V lies transposed."""
    v = cache.v[i]
    assert v is not None, "values are in keys"
    if not cache.transposed_v:
        return ops.view(v, (v.ne[0], n), (v.nb[1], v.nb[1] * n), (stream * cache.n_cells + first) * v.nb[1])
    size, row = SIZES[v.type].type_size, row_size(v.type, cache.n_cells)
    return ops.view(v, (n, v.ne[0]), (row, row * v.ne[0]), stream * row * v.ne[0] + first * size)
