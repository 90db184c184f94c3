"""Where the tokens of a micro-batch lie in a cache of keys and values, and what each of them sees there: the mask.

Follows llama-kv-cache.cpp: set_input_kq_mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyggml.memory.base import Placement
from pyggml.memory.cells import FREE, Cells
from pyggml.memory.kv_tensors import KVShape
from pyggml.memory.ubatch import NOBODY, Ubatch
from pyggml.memory.window import Window


@dataclass(frozen=True)
class KVPlacement(Placement):
    """`cells` (n,): where each row of the micro-batch goes, in its own stream; `dropped`: what leaves a window then."""

    ub: Ubatch
    cells: NDArray[np.int64]
    shape: KVShape
    dropped: tuple[tuple[int, NDArray[np.int64]], ...] = ()


def mask_of(
    cells: Cells, placement: KVPlacement, dtype: np.dtype[Any], window: Window | None, alibi: bool
) -> NDArray[Any]:
    """0 where a token sees a cell (of its own sequence, no later than itself, within the window), or minus the distance
    with ALiBi; else -inf: (n_streams, tokens of each, n_kv), without the first where there is one stream. F16 or F32."""
    ub, shape = placement.ub, placement.shape
    n_kv, n_seqs = shape.n_kv, shape.n_streams
    if ub.n == 1 and window is None and not cells.shared and not alibi:
        cell = int(placement.cells[0])
        if cell == cells.used[shape.first]:  # behind all others, which are before it: it sees each
            whole = np.zeros(n_kv, dtype)
            whole[cell + 1 :] = -np.inf
            return whole
        pos = cells.pos[shape.first, :n_kv].copy()
        pos[cell] = ub.pos[0]
        return _hidden(pos <= ub.pos[0], dtype)
    each = ub.n // n_seqs
    pos = positions_of(cells, placement)
    wanted = ub.pos.reshape(n_seqs, each, 1)
    seen = pos[:, None, :] <= wanted
    if window is not None:
        seen &= pos[:, None, :] >= window.first(wanted.astype(np.int64))
    if cells.shared:
        for seq in np.unique(ub.seq).tolist():
            if seq != NOBODY:
                mine = np.zeros(n_kv, np.bool_)
                high = min(n_kv, int(cells.high[0]))
                mine[:high] = cells.mine(seq, high)
                mine[placement.cells] = ub.seq == seq
                seen[0, ub.seq == seq] &= mine
    for i in np.flatnonzero(ub.seq == NOBODY).tolist() if ub.filled else ():
        seen[i // each, i % each] = False  # it sees itself alone, so that it computes numbers
        seen[i // each, i % each, placement.cells[i]] = True
    mask = _hidden(seen, dtype)
    if alibi:
        far = np.where(seen, pos[:, None, :].astype(np.int64) - wanted, 0)
        mask = np.where(seen, far.astype(mask.dtype), mask)
    return mask[0] if n_seqs == 1 else mask


def positions_of(cells: Cells, placement: KVPlacement) -> NDArray[np.int32]:
    """Of the cells that a micro-batch looks at, once its tokens are there, FREE where there is none: (n_streams, n_kv)."""
    ub, shape = placement.ub, placement.shape
    pos = cells.pos[shape.first : shape.first + shape.n_streams, : shape.n_kv].copy()
    for stream, dropped in placement.dropped:
        pos[stream - shape.first, dropped] = FREE
    pos[np.arange(ub.n) // (ub.n // shape.n_streams), placement.cells] = ub.pos
    return pos


def _hidden(seen: NDArray[np.bool_], dtype: np.dtype[Any]) -> NDArray[Any]:
    """0, and the bits of -inf where nothing is seen."""
    if dtype == np.float32:
        return np.multiply(~seen, np.uint32(0xFF800000), dtype=np.uint32).view(np.float32)
    return np.multiply(~seen, np.uint16(0xFC00), dtype=np.uint16).view(np.float16)
