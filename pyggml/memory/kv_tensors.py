"""The tensors of a cache of keys and values, and the nodes that write and read them.

Owns their layouts, which follow llama-kv-cache.cpp: one K and one V tensor a layer, on the layer's device; with flash
attention V lies as K does, without it transposed; sequences with a stream of their own lie one behind the other. A cache of
blocks takes each head's K and V rotated, because a rotation spreads what is extreme over all elements of a block: products
of rotated queries and keys are those of the plain ones, and the weighted sums of rotated values are rotated back. Knows no
token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from pyggml import ops
from pyggml.backend.base import Buffer, Device
from pyggml.dtypes import SIZES, GGMLType, row_size
from pyggml.errors import UnsupportedError
from pyggml.memory.hadamard import hadamard, hadamard_transform, k_rotation, v_rotation
from pyggml.memory.placed import Placed
from pyggml.tensor import Tensor

CELL_STEP = 256
"""Graphs see a multiple of this many cells, so that they stay the same for that many tokens."""

T = GGMLType
TYPES = (T.F32, T.F16, T.BF16, T.Q8_0, T.Q4_0, T.Q4_1, T.IQ4_NL, T.Q5_0, T.Q5_1)
"""Those of llama.cpp (common/arg.cpp: kv_cache_types)."""

Turn = Callable[[Tensor, Tensor, int], Tensor]
"""(keys (head, n_head_kv, n) F32, positions I32 (n,), n_ctx of the cache) -> the keys turned by these positions."""


def pad_cells(n: int, few_shapes: bool = False) -> int:
    """The multiple of CELL_STEP that holds n cells; with `few_shapes` one of the four between a power of two and the next, so
    that a text that grows has few of them, and at most a quarter of the cells hold nothing."""
    step = CELL_STEP
    if few_shapes:
        step = max(step, 1 << max((n - 1).bit_length() - 3, 0))
    return -(-n // step) * step


class KVLayer(NamedTuple):
    """What a layer of attention wants to be kept. Sizes in elements; `turn` is None where keys know no position; `v_in_k`:
    a value is the first head_v elements of its key, and keys alone are kept (latent attention); `n_pos`: positions that a
    token has; `beside`: elements behind a cell's keys that products do not read, which `turn_beside` turns: by them tokens
    are chosen."""

    il: int
    head_k: int
    head_v: int
    n_head_kv: int
    turn: Turn | None = None
    v_in_k: bool = False
    n_pos: int = 1
    beside: int = 0
    turn_beside: Turn | None = None

    @property
    def k_row(self) -> int:
        """Elements of a cell's keys, and of what lies beside them."""
        return self.head_k * self.n_head_kv + self.beside


class KVShape(NamedTuple):
    """The cells that a graph sees: the first `n_kv` of the `n_streams` streams from `first` on."""

    n_kv: int
    first: int = 0
    n_streams: int = 1


class KVTensors(Placed):
    """`n_cells` cells a stream for each layer; k[i] and v[i] are (elements of all heads, n_cells x n_streams), v[i] None
    where values are in keys."""

    def __init__(
        self,
        layers: Sequence[KVLayer],
        n_cells: int,
        n_streams: int,
        type_k: GGMLType,
        type_v: GGMLType,
        transposed_v: bool,
        title: str = "cache",
    ) -> None:
        """Nothing is allocated yet. `title`: how names of tensors begin. Raises UnsupportedError."""
        in_k = {layer.head_v for layer in layers if layer.v_in_k}
        assert all(la.head_v <= la.head_k for la in layers if la.v_in_k), layers
        for which, dtype, heads in (
            ("K", type_k, [*(layer.head_k for layer in layers), *(layer.beside for layer in layers), *in_k]),
            ("V", type_v, [layer.head_v for layer in layers if not layer.v_in_k]),
        ):
            if dtype not in TYPES:
                known = ", ".join(t.name for t in TYPES)
                raise UnsupportedError(f"a cache of {which} in {dtype.name} is unknown; known are {known}")
            for head in heads:
                if head % SIZES[dtype].block_size:
                    raise UnsupportedError(
                        f"{which} cache type {dtype.name.lower()} with block size {SIZES[dtype].block_size} does not "
                        f"divide n_embd_head_{which.lower()}={head}"
                    )
        if transposed_v and SIZES[type_v].block_size > 1:
            raise UnsupportedError("quantized V cache requires flash_attn to be enabled")
        self.layers = list(layers)
        self.n_cells = n_cells
        self.n_ctx = n_cells
        self.transposed_v = transposed_v
        total = n_cells * n_streams
        self.k = [Tensor(type_k, (la.k_row, total), name=f"{title}_k_l{la.il}") for la in layers]
        self.v = [
            None if la.v_in_k else Tensor(type_v, (la.head_v * la.n_head_kv, total), name=f"{title}_v_l{la.il}")
            for la in layers
        ]
        self.k_rotation: list[Tensor | None] = [None] * len(layers)
        self.v_rotation: list[Tensor | None] = [None] * len(layers)
        self.buffers: list[Buffer] = []
        self._make_rotations([None] * len(layers))

    def _make_rotations(self, devices: Sequence[Device | None]) -> None:
        """A matrix of each size on each device; layers of one device share it. None where nothing is rotated."""
        made: dict[tuple[int, int], Tensor] = {}
        for i, (layer, device) in enumerate(zip(self.layers, devices, strict=True)):
            v = self.v[i]
            if v is None:  # a rotated key does not begin with a rotated value
                continue
            for size, rotations in (
                (k_rotation(self.k[i].type, layer.head_k), self.k_rotation),
                (v_rotation(v.type, layer.head_v), self.v_rotation),
            ):
                if size:
                    key = id(device), size
                    if key not in made:
                        made[key] = Tensor(GGMLType.F32, (size, size), name=f"hadamard_{size}")
                    rotations[i] = made[key]

    def allocate(self, devices: Sequence[Device]) -> None:
        """`devices[i]` is where layer number i of this cache lies. Raises DeviceError; nothing is kept then."""
        self._make_rotations(devices)
        super().allocate(devices)

    def _beside(self, here: Sequence[int]) -> list[tuple[Tensor, bytes]]:
        """Their rotations, each once."""
        rotations = {id(t): t for i in here for t in (self.k_rotation[i], self.v_rotation[i]) if t is not None}
        return [(matrix, hadamard(matrix.ne[0]).tobytes()) for matrix in rotations.values()]

    def tensors(self, i: int) -> list[Tensor]:
        v = self.v[i]
        return [self.k[i]] if v is None else [self.k[i], v]

    def kept(self) -> list[Tensor]:
        """The tensors of all layers, in their order: K before V."""
        return [tensor for i in range(len(self.layers)) for tensor in self.tensors(i)]

    # ---- nodes of layer number i

    def query(self, i: int, q: Tensor) -> Tensor:
        """q (head_k, n_head, n_tokens) as the cached keys want it."""
        return hadamard_transform(q, self.k_rotation[i])

    def result(self, i: int, cur: Tensor) -> Tensor:
        """Weighted sums of cached values (head_v * n_head, n_tokens) -> those of the plain ones."""
        return hadamard_transform(cur, self.v_rotation[i])

    def write_k(self, i: int, k: Tensor, rows: Tensor, beside: Tensor | None = None) -> Tensor:
        """Store k (head_k, n_head_kv, n_tokens) in the cells `rows`, and (beside, n_tokens) behind it."""
        k = _token_rows(hadamard_transform(k, self.k_rotation[i]))
        return ops.set_rows(self.k[i], k if beside is None else ops.concat(k, beside, 0), rows)

    def write_v(self, i: int, v: Tensor, rows: Tensor) -> Tensor:
        """Store v (head_v, n_head_kv, n_tokens); `rows` are cells, or one element each where V lies transposed."""
        cache = self.v[i]
        assert cache is not None, "values are in keys"
        v = hadamard_transform(v, self.v_rotation[i])
        if self.transposed_v:
            v = v if v.is_contiguous else ops.cont(v)
            return ops.set_rows(ops.reshape(cache, 1, cache.nelements), ops.reshape(v, 1, v.nelements), rows)
        return ops.set_rows(cache, _token_rows(v), rows)

    def read_k(self, i: int, shape: KVShape) -> Tensor:
        """(head_k, n_kv, n_head_kv, n_streams)"""
        layer = self.layers[i]
        return self._read(self.k[i], layer.head_k, layer.head_k, layer.n_head_kv, shape)

    def read_beside(self, i: int, shape: KVShape) -> Tensor:
        """(beside, n_kv, 1, n_streams)"""
        layer, cache = self.layers[i], self.k[i]
        nb3 = cache.nb[1] * self.n_cells
        offset = row_size(cache.type, layer.head_k * layer.n_head_kv) + shape.first * nb3
        ne = (layer.beside, shape.n_kv, 1, shape.n_streams)
        return ops.view(cache, ne, (cache.nb[1], nb3, nb3), offset)

    def read_v(self, i: int, shape: KVShape) -> Tensor:
        """(head_v, n_kv, n_head_kv, n_streams); (n_kv, head_v, n_head_kv, n_streams) where V lies transposed."""
        layer, cache = self.layers[i], self.v[i]
        if cache is None:
            v = self._read(self.k[i], layer.head_v, layer.head_k, layer.n_head_kv, shape)
            return transposed(v) if self.transposed_v else v
        if not self.transposed_v:
            return self._read(cache, layer.head_v, layer.head_v, layer.n_head_kv, shape)
        nb2 = row_size(cache.type, self.n_cells)
        nb1 = nb2 * layer.head_v
        nb3 = nb1 * layer.n_head_kv
        ne = (shape.n_kv, layer.n_head_kv, layer.head_v, shape.n_streams)
        return ops.permute(ops.view(cache, ne, (nb1, nb2, nb3), shape.first * nb3), 0, 2, 1, 3)

    def _read(self, cache: Tensor, n: int, head: int, n_head_kv: int, shape: KVShape) -> Tensor:
        """The first `n` elements of each head."""
        nb1, nb2 = row_size(cache.type, head), cache.nb[1]
        nb3 = nb2 * self.n_cells
        ne = (n, n_head_kv, shape.n_kv, shape.n_streams)
        return ops.permute(ops.view(cache, ne, (nb1, nb2, nb3), shape.first * nb3), 0, 2, 1, 3)


def _token_rows(x: Tensor) -> Tensor:
    """(head, n_head, n_tokens), a token's heads together, as (head * n_head, n_tokens)."""
    if x.is_contiguous or x.nb[1] != x.ne[0] * x.nb[0]:
        return ops.reshape(x, x.ne[0] * x.ne[1], x.ne[2])
    return ops.view(x, (x.ne[0] * x.ne[1], x.ne[2]), (x.nb[2],))


def transposed(v: Tensor) -> Tensor:
    """(head_v, n_kv, n_head_kv, n_streams) -> (n_kv, head_v, n_head_kv, n_streams), a copy; of blocks one of F32."""
    if SIZES[v.type].block_size > 1:
        v = ops.cpy(v, Tensor(GGMLType.F32, v.ne, name=f"{v.name} (f32)"))
    return ops.cont(ops.permute(v, 1, 0, 2, 3))
