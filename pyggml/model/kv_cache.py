"""Keys and values of the tokens so far: one K and one V tensor a layer, on the layer's device.

Owns the cells (the cell of a token is its position), their padding and the mask; knows no backend and no token.
Layouts follow llama-kv-cache.cpp: with flash attention V lies as K does, without it transposed. A cache of blocks takes
each head's K and V rotated, because a rotation spreads what is extreme over all elements of a block: products of rotated
queries and keys are those of the plain ones, and the weighted sums of rotated values are rotated back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyggml import ops
from pyggml.backend.base import Buffer, Device, Usage
from pyggml.backend.host import HostBuffer
from pyggml.backend.pack import pack
from pyggml.dtypes import SIZES, GGMLType, row_size
from pyggml.errors import UnsupportedError
from pyggml.tensor import Tensor

CELL_STEP = 256
"""Graphs see a multiple of this many cells, so that they stay the same for that many tokens."""

T = GGMLType
TYPES = (T.F32, T.F16, T.BF16, T.Q8_0, T.Q4_0, T.Q4_1, T.IQ4_NL, T.Q5_0, T.Q5_1)
"""Those of llama.cpp (common/arg.cpp: kv_cache_types)."""

MIN_ROTATED = 64


def k_rotation(dtype: GGMLType, head: int) -> int:
    """Elements of a head of K that are rotated together, 0 = it is kept as it is (build_input_k_rot)."""
    if SIZES[dtype].block_size == 1 or head % MIN_ROTATED:
        return 0
    return head & -head


def v_rotation(dtype: GGMLType, head: int) -> int:
    """The same for V (build_input_v_rot)."""
    return MIN_ROTATED if k_rotation(dtype, head) else 0


def hadamard(n: int) -> NDArray[np.float32]:
    """The orthonormal Walsh-Hadamard matrix (n, n), n a power of two: its own inverse (ggml_gen_hadamard)."""
    signs = np.ones((1, 1), np.float32)
    while len(signs) < n:
        signs = np.block([[signs, signs], [signs, -signs]])
    return signs * np.float32(1.0 / np.sqrt(np.float32(n)))


def rotated(x: Tensor, rotation: Tensor | None) -> Tensor:
    """Each run of elements of x, as long as the rotation, times it."""
    if rotation is None:
        return x
    n = rotation.ne[0]
    return ops.reshape(ops.mul_mat(rotation, ops.reshape(x, n, x.nelements // n)), *x.ne)


def pad_cells(n: int) -> int:
    return -(-n // CELL_STEP) * CELL_STEP


class KVCache:
    """`n_cells` cells for each layer; k[il] and v[il] are (elements of all heads, n_cells)."""

    def __init__(
        self,
        devices: Sequence[Device],
        n_ctx: int,
        head_k: int,
        head_v: int,
        n_head_kv: int,
        type_k: GGMLType = GGMLType.F16,
        type_v: GGMLType = GGMLType.F16,
        transposed_v: bool = False,
    ) -> None:
        """`devices[il]` is where layer il lives; head sizes in elements. Raises DeviceError, UnsupportedError."""
        for which, dtype, head in (("K", type_k, head_k), ("V", type_v, head_v)):
            if dtype not in TYPES:
                known = ", ".join(t.name for t in TYPES)
                raise UnsupportedError(f"a cache of {which} in {dtype.name} is unknown; known are {known}")
            if head % SIZES[dtype].block_size:
                raise UnsupportedError(
                    f"{which} cache type {dtype.name.lower()} with block size {SIZES[dtype].block_size} does not divide "
                    f"n_embd_head_{which.lower()}={head}"
                )
        if transposed_v and SIZES[type_v].block_size > 1:
            raise UnsupportedError("quantized V cache requires flash_attn to be enabled")
        self.head_k, self.head_v, self.n_head_kv = head_k, head_v, n_head_kv
        self.n_cells = pad_cells(n_ctx)
        self.transposed_v = transposed_v
        self.k = [Tensor(type_k, (head_k * n_head_kv, self.n_cells), name=f"cache_k_l{i}") for i in range(len(devices))]
        self.v = [Tensor(type_v, (head_v * n_head_kv, self.n_cells), name=f"cache_v_l{i}") for i in range(len(devices))]
        self.k_rotation: list[Tensor | None] = [None] * len(devices)
        self.v_rotation: list[Tensor | None] = [None] * len(devices)
        self.buffers: list[Buffer] = []
        try:
            for device in {id(d): d for d in devices}.values():
                here = [i for i, d in enumerate(devices) if d is device]
                caches = [t for i in here for t in (self.k[i], self.v[i])]
                self._place(
                    device, caches, self._rotations(here, k_rotation(type_k, head_k), v_rotation(type_v, head_v))
                )
        except BaseException:
            self.free()
            raise

    def _rotations(self, layers: list[int], n_k: int, n_v: int) -> list[Tensor]:
        """The matrices that these layers of one device share, by size; none where nothing is rotated."""
        made = {n: Tensor(GGMLType.F32, (n, n), name=f"hadamard_{n}") for n in (n_k, n_v) if n}
        for il in layers:
            self.k_rotation[il], self.v_rotation[il] = made.get(n_k), made.get(n_v)
        return list(made.values())

    def _place(self, device: Device, caches: list[Tensor], rotations: list[Tensor]) -> None:
        buffers = pack(device, [*caches, *rotations], Usage.ANY)
        self.buffers += buffers
        for buffer in buffers:
            if not isinstance(buffer, HostBuffer):  # that one is zero, and its pages are not there yet
                buffer.clear(0)  # cells that no token has filled are masked, but 0 x NaN would still be NaN
        for matrix in rotations:
            assert matrix.buffer is not None
            matrix.buffer.set(matrix, hadamard(matrix.ne[0]).tobytes())

    @property
    def n_bytes(self) -> int:
        return sum(buffer.size for buffer in self.buffers)

    def n_kv(self, n_used: int) -> int:
        """Cells that a graph looks at when `n_used` are filled (llama_kv_cache::get_n_kv)."""
        return min(self.n_cells, max(CELL_STEP, pad_cells(n_used)))

    # ---- nodes

    def query(self, il: int, q: Tensor) -> Tensor:
        """q (head_k, n_head, n_tokens) as the cached keys want it."""
        return rotated(q, self.k_rotation[il])

    def result(self, il: int, cur: Tensor) -> Tensor:
        """Weighted sums of cached values (head_v * n_head, n_tokens) -> those of the plain ones."""
        return rotated(cur, self.v_rotation[il])

    def write_k(self, il: int, k: Tensor, rows: Tensor) -> Tensor:
        """Store k (head_k, n_head_kv, n_tokens) in the cells `rows`."""
        k = rotated(k, self.k_rotation[il])
        return ops.set_rows(self.k[il], ops.reshape(k, k.ne[0] * k.ne[1], k.ne[2]), rows)

    def write_v(self, il: int, v: Tensor, rows: Tensor) -> Tensor:
        """Store v (head_v, n_head_kv, n_tokens); `rows` are cells, or one element each where V lies transposed."""
        cache = self.v[il]
        v = rotated(v, self.v_rotation[il])
        if self.transposed_v:
            return ops.set_rows(ops.reshape(cache, 1, cache.nelements), ops.reshape(v, 1, v.nelements), rows)
        return ops.set_rows(cache, ops.reshape(v, v.ne[0] * v.ne[1], v.ne[2]), rows)

    def read_k(self, il: int, n_kv: int) -> Tensor:
        """(head_k, n_kv, n_head_kv)"""
        cache = self.k[il]
        nb1, nb2 = row_size(cache.type, self.head_k), cache.nb[1]
        view = ops.view(cache, (self.head_k, self.n_head_kv, n_kv), (nb1, nb2, nb2 * self.n_cells))
        return ops.permute(view, 0, 2, 1, 3)

    def read_v(self, il: int, n_kv: int) -> Tensor:
        """(head_v, n_kv, n_head_kv); (n_kv, head_v, n_head_kv) where V lies transposed."""
        cache = self.v[il]
        if self.transposed_v:
            nb2 = row_size(cache.type, self.n_cells)
            nb1 = nb2 * self.head_v
            view = ops.view(cache, (n_kv, self.n_head_kv, self.head_v), (nb1, nb2, nb1 * self.n_head_kv))
        else:
            nb1, nb2 = row_size(cache.type, self.head_v), cache.nb[1]
            view = ops.view(cache, (self.head_v, self.n_head_kv, n_kv), (nb1, nb2, nb2 * self.n_cells))
        return ops.permute(view, 0, 2, 1, 3)

    # ---- inputs

    def v_row_count(self, n_tokens: int) -> int:
        return n_tokens * self.head_v * self.n_head_kv if self.transposed_v else n_tokens

    def v_rows(self, cells: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows for write_v (llama_kv_cache::set_input_v_idxs)."""
        if not self.transposed_v:
            return cells
        element = np.arange(self.head_v * self.n_head_kv, dtype=np.int64) * self.n_cells
        return (cells[:, None] + element[None, :]).reshape(-1)

    def mask(self, cells: NDArray[np.int64], n_kv: int) -> NDArray[Any]:
        """0 where a token sees a cell (its own and those before), else -inf: (n_tokens, n_kv).

        F16 for flash attention, F32 for soft max.
        """
        dtype = np.float32 if self.transposed_v else np.float16
        mask = np.zeros((cells.size, n_kv), dtype)
        for row, cell in enumerate(cells.tolist()):
            mask[row, cell + 1 :] = -np.inf
        return mask

    def free(self) -> None:
        for buffer in self.buffers:
            buffer.free()
        self.buffers = []
