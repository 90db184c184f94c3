"""The bytes of cells: read, written, copied from one stream to another. Owns where a cell's bytes lie."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyggml import ops
from pyggml.dtypes import SIZES
from pyggml.graph import Graph, build_forward
from pyggml.memory.kv_tensors import KVTensors
from pyggml.memory.shift import keys, values
from pyggml.tensor import Tensor


def runs(cells: NDArray[np.int64]) -> Iterator[tuple[int, int, int]]:
    """(place in `cells`, first cell, number) of stretches of cells that lie in a row."""
    breaks = np.flatnonzero(np.diff(cells) != 1) + 1
    edges = [0, *breaks.tolist(), len(cells)]
    for start, end in pairwise(edges):
        if end > start:
            yield start, int(cells[start]), end - start


def copy_graph(
    cache: KVTensors, src: int, cells: NDArray[np.int64], dst: int, to: NDArray[np.int64]
) -> tuple[Graph, list[tuple[Tensor, NDArray[Any]]]]:
    """What lies in `cells` of stream `src` also comes to lie in the cells `to` of stream `dst`."""
    order: list[Tensor] = []
    pairs = _common_runs(cells, to)
    for i in range(len(cache.k)):
        for part in (keys,) if cache.v[i] is None else (keys, values):
            for first, target, n in pairs:
                order.append(ops.cpy(part(cache, i, src, first, n), part(cache, i, dst, target, n)))
    return build_forward(order), []


def _common_runs(a: NDArray[np.int64], b: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    breaks = np.flatnonzero((np.diff(a) != 1) | (np.diff(b) != 1)) + 1
    edges = [0, *breaks.tolist(), len(a)]
    return [(int(a[s]), int(b[s]), e - s) for s, e in pairwise(edges) if e > s]


def read(cache: KVTensors, tensor: Tensor, stream: int, cells: NDArray[np.int64]) -> bytes:
    """One row a cell, V never transposed."""
    assert tensor.buffer is not None
    if _lies_transposed(cache, tensor):
        return np.ascontiguousarray(_columns(cache, tensor, stream)[:, cells].T).tobytes()
    row, base = tensor.nb[1], stream * cache.n_cells
    return b"".join(tensor.buffer.get(tensor, (base + first) * row, n * row) for _, first, n in runs(cells))


def write(cache: KVTensors, tensor: Tensor, stream: int, cells: NDArray[np.int64], rows: NDArray[np.uint8]) -> None:
    """Put `rows` (bytes, as `read` gives them) into these cells of a stream."""
    assert tensor.buffer is not None
    if _lies_transposed(cache, tensor):
        columns = _columns(cache, tensor, stream)
        columns[:, cells] = np.frombuffer(rows.tobytes(), columns.dtype).reshape(len(cells), -1).T
        tensor.buffer.set(tensor, columns.reshape(-1).view(np.uint8), stream * columns.nbytes)
        return
    row, base = tensor.nb[1], stream * cache.n_cells
    for start, first, n in runs(cells):
        tensor.buffer.set(tensor, np.ascontiguousarray(rows[start * row : (start + n) * row]), (base + first) * row)


def _lies_transposed(cache: KVTensors, tensor: Tensor) -> bool:
    return cache.transposed_v and any(tensor is v for v in cache.v)


def _columns(cache: KVTensors, tensor: Tensor, stream: int) -> NDArray[Any]:
    """A stream of a V that lies transposed: (elements of all heads, n_cells), a copy."""
    assert tensor.buffer is not None and SIZES[tensor.type].block_size == 1, tensor
    element = np.dtype(f"u{SIZES[tensor.type].type_size}")
    size = tensor.ne[0] * cache.n_cells * element.itemsize
    data = bytearray(tensor.buffer.get(tensor, stream * size, size))
    return np.frombuffer(data, element).reshape(tensor.ne[0], cache.n_cells)
