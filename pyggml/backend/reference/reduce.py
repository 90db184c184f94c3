"""SUM, SUM_ROWS, MEAN, CUMSUM, ARGMAX, COUNT_EQUAL: many elements to one number.

Sources: ggml-cpu/ops.cpp: ggml_compute_forward_sum and the five of these names; vec.h: ggml_vec_argmax_f32.
"""

from __future__ import annotations

import numpy as np

from pyggml.backend.host import view_of
from pyggml.backend.reference.values import FLOATS, Values, not_among, read, source, write
from pyggml.dtypes import GGMLType
from pyggml.ops import Op
from pyggml.tensor import Tensor


def refuse_sum(node: Tensor) -> str | None:
    return not_among(FLOATS, source(node, 0))


def refuse(node: Tensor) -> str | None:
    return not_among([GGMLType.F32], source(node, 0))


def refuse_count(node: Tensor) -> str | None:
    return not_among([GGMLType.I32], source(node, 0), source(node, 1))


def sum_all(node: Tensor) -> None:
    write(node, read(source(node, 0)).sum().reshape(1, 1, 1, 1))


def sum_rows(node: Tensor) -> None:
    write(node, read(source(node, 0)).sum(axis=-1, keepdims=True))


def mean(node: Tensor) -> None:
    a = source(node, 0)
    write(node, read(a).sum(axis=-1, keepdims=True) / np.float64(a.ne[0]))


def cumsum(node: Tensor) -> None:
    write(node, read(source(node, 0)).cumsum(axis=-1))


def last_of_the_largest(row: Values) -> int:
    """Where a row is largest, of equal elements the last. A NaN clears what is the largest so far, but not its place."""
    top, place = -np.inf, 0
    for i, x in enumerate(row):
        top = top if top > x else x
        if top == x:
            place = i
    return place


def argmax(node: Tensor) -> None:
    view_of(node)[0, 0, 0] = [last_of_the_largest(row) for row in read(source(node, 0))[0, 0]]


def count_equal(node: Tensor) -> None:
    view_of(node)[...] = np.count_nonzero(view_of(source(node, 0)) == view_of(source(node, 1)))


REFERENCE_OPS = {
    Op.SUM: (refuse_sum, sum_all),
    Op.SUM_ROWS: (refuse, sum_rows),
    Op.MEAN: (refuse, mean),
    Op.CUMSUM: (refuse, cumsum),
    Op.ARGMAX: (refuse, argmax),
    Op.COUNT_EQUAL: (refuse_count, count_equal),
}
