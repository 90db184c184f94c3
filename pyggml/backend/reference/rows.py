"""GET_ROWS and SET_ROWS: rows chosen by number. Owns the check of those numbers.

Sources: ggml-cpu/ops.cpp: ggml_compute_forward_get_rows, ggml_compute_forward_set_rows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pyggml.backend.host import view_of
from pyggml.backend.reference.values import decode, encode, not_among, read, source, write
from pyggml.dtypes import GGMLType
from pyggml.errors import ComputeError
from pyggml.ops import Op
from pyggml.quants import QUANTS, quantizable
from pyggml.tensor import Tensor


def row_numbers(node: Tensor, rows: Tensor, limit: int) -> NDArray[np.int64]:
    """(ne2, ne1, ne0) of `rows`. Raises ComputeError, before anything is written, when one is out of range."""
    numbers: NDArray[np.int64] = view_of(rows)[0].astype(np.int64)
    bad = numbers[(numbers < 0) | (numbers >= limit)]
    if bad.size:
        raise ComputeError(f"{Op(node.op).name} {node.name!r}: row index {bad[0]}, there are {limit} rows")
    return numbers


def refuse_get(node: Tensor) -> str | None:
    return not_among([*QUANTS, GGMLType.I32], source(node, 0))


def get_rows(node: Tensor) -> None:
    a, rows = source(node, 0), source(node, 1)
    numbers = row_numbers(node, rows, a.ne[1])
    i3, i2, _ = np.indices(numbers.shape)
    raw = view_of(a)[i3, i2, numbers]
    if a.type == GGMLType.I32:
        view_of(node)[...] = raw
    else:
        write(node, decode(a.type, raw))


def refuse_set(node: Tensor) -> str | None:
    return not_among(quantizable(), node)


def set_rows(node: Tensor) -> None:
    """Where a row number appears twice the last one counts."""
    b, rows = source(node, 0), source(node, 1)
    numbers = row_numbers(node, rows, node.ne[1])
    numbers = np.tile(numbers, (b.ne[3] // rows.ne[2], b.ne[2] // rows.ne[1], 1))
    raw, table = encode(node.type, read(b)), view_of(node)
    for i3, i2, i in np.ndindex(numbers.shape):
        table[i3, i2, numbers[i3, i2, i]] = raw[i3, i2, i]


REFERENCE_OPS = {Op.GET_ROWS: (refuse_get, get_rows), Op.SET_ROWS: (refuse_set, set_rows)}
