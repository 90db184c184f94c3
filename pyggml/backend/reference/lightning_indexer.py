"""LIGHTNING_INDEXER: how well each cell's key fits a token's queries.

Source: ggml-cpu/ops.cpp: ggml_compute_forward_lightning_indexer.
"""

from __future__ import annotations

import numpy as np

from pyggml.backend.reference.values import not_among, read, source, write
from pyggml.dtypes import GGMLType
from pyggml.ops import Op
from pyggml.quants import QUANTS
from pyggml.tensor import Tensor


def refuse(node: Tensor) -> str | None:
    return not_among([GGMLType.F32], node) or not_among(QUANTS, source(node, 1))


def lightning_indexer(node: Tensor) -> None:
    """q (streams, tokens, heads, size), k (streams, cells, 1, size)."""
    q, k, weights, mask = (read(source(node, i)) for i in range(4))
    products = np.einsum("sthe,ske->sthk", q, k[:, :, 0])
    scores = np.einsum("sthk,sth->stk", np.where(products > 0, products, 0.0), weights[:, 0])
    write(node, scores[:, None] + mask[np.arange(len(q)) % len(mask)])


REFERENCE_OPS = {Op.LIGHTNING_INDEXER: (refuse, lightning_indexer)}
