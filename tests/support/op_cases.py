"""Cases for op tests: one node, its operands in all kinds of layout, their contents. Owns the drawing of shapes,
layouts and values.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
from hypothesis import strategies as st

from pyggml import ops
from pyggml.dtypes import SIZES, GGMLType
from pyggml.quants import QUANTS
from pyggml.tensor import Tensor

F32, F16, BF16, I32, I64 = GGMLType.F32, GGMLType.F16, GGMLType.BF16, GGMLType.I32, GGMLType.I64
FLOATS = (F32, F16, BF16)
BLOCKS = tuple(t for t in QUANTS if SIZES[t].block_size > 1 and QUANTS[t].can_quantize)
READ_ONLY = tuple(t for t in QUANTS if not QUANTS[t].can_quantize)
MADE = (*FLOATS, *(t for t in BLOCKS if t not in (GGMLType.Q8_1, GGMLType.Q8_K)))
WEIGHTS = (*MADE, *READ_ONLY)

EDGE_SIZES = (1, 2, 3, 5, 7, 31, 32, 33, 63, 64, 65, 97, 127, 255, 256, 257)
SMALL_SIZES = (1, 2, 3, 4, 5, 7)

# Largest allowed sum of squared differences over sum of squares, by the type of the result: what a last bit may cost.
ROUNDING = {F32: 1e-7, F16: 1e-6, BF16: 1e-4}

SPECIALS = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, 100.0, -100.0], np.float32)


class Case:
    """`node` with the contents of every tensor that owns memory, by id(); `nmse` and `atol` bound the difference.

    Elements that differ by no more than `atol` count as equal. `size`: what an element measures when nothing cancels out;
    where one happens to be near 0, the error is held against that. `peer_nmse`, `peer_atol`: for the stock ggml, where its
    own approximations are coarser.
    """

    def __init__(
        self,
        node: Tensor,
        contents: dict[int, tuple[Tensor, bytes]],
        nmse: float,
        atol: float = 0.0,
        peer_nmse: float = 0.0,
        peer_atol: float = 0.0,
        size: float = 0.0,
    ) -> None:
        self.node, self.contents = node, contents
        self.size = size
        self.nmse, self.atol, self.peer_nmse, self.peer_atol = nmse, atol, peer_nmse, peer_atol

    def limits(self, device_name: str) -> tuple[float, float]:
        if device_name == "peer":
            return max(self.nmse, self.peer_nmse), max(self.atol, self.peer_atol)
        return self.nmse, self.atol

    def __repr__(self) -> str:
        def shape(t: Tensor) -> str:
            return f"{t.type.name} {list(t.ne)} nb {list(t.nb)}" + (f" at {t.view_offs}" if t.view_src else "")

        sources = "; ".join(shape(s) for s in self.node.src if s is not None)
        params = np.frombuffer(self.node.op_params, np.int32).tolist()
        return f"<{ops.Op(self.node.op).name} {shape(self.node)} <- {sources}; params {params}>"


@dataclass
class Operands:
    """Makes operands; remembers what is in them."""

    rng: np.random.Generator
    specials: bool = False
    special_values: np.ndarray = field(default_factory=lambda: SPECIALS, repr=False)
    contents: dict[int, tuple[Tensor, bytes]] = field(default_factory=dict, repr=False)

    def leaf(self, dtype: GGMLType, ne: Sequence[int], data: np.ndarray | None = None, scale: float = 1.0) -> Tensor:
        """A tensor of its own: `data` (any shape), or random values; of blocks without a meaning here random bytes."""
        t = Tensor(dtype, ne, name=f"{dtype.name.lower()}{len(self.contents)}")
        if data is None and dtype in READ_ONLY:
            self.contents[id(t)] = (t, random_blocks(dtype, self.rng, t.nbytes, scale))
        elif data is None and dtype not in QUANTS and SIZES[dtype].block_size > 1:
            self.contents[id(t)] = (t, self.rng.bytes(t.nbytes))
        else:
            self.contents[id(t)] = (t, to_bytes(dtype, self.values(t.nelements, scale) if data is None else data))
        return t

    def values(self, n: int, scale: float = 1.0) -> np.ndarray:
        x = (self.rng.standard_normal(n) * scale).astype(np.float32)
        if self.specials and n:
            where = self.rng.integers(0, n, max(1, n // 50))
            x[where] = self.rng.choice(self.special_values, where.size)
        return x

    def like(self, layout: str, dtype: GGMLType, ne: Sequence[int], scale: float = 1.0) -> Tensor:
        """A tensor of shape `ne` whose strides are as `layout` says."""
        n0, n1, n2, n3 = (*ne, 1, 1, 1)[:4]
        block = SIZES[dtype].block_size
        if layout == "dense":
            return self.leaf(dtype, ne, scale=scale)
        if layout == "padded":  # rows, then planes, with something between them
            whole = self.leaf(dtype, (n0 + block, n1 + 2, n2, n3), scale=scale)
            return ops.view(whole, (n0, n1, n2, n3), whole.nb[1:], whole.nb[1] if whole.nelements else 0)
        if layout == "rows":  # rows with something between them, planes dense (ggml's contiguous_1)
            whole = self.leaf(dtype, (n0 + block, n1, n2, n3), scale=scale)
            return ops.view(whole, (n0, n1, n2, n3), whole.nb[1:], 0)
        if layout == "planes":  # dimensions 1 and 2 swapped in memory, as heads and tokens are
            return ops.permute(self.leaf(dtype, (n0, n2, n1, n3), scale=scale), 0, 2, 1, 3)
        if layout == "transposed":
            return ops.transpose(self.leaf(dtype, (n1, n0, n2, n3), scale=scale))
        assert layout == "reversed", layout
        return ops.permute(self.leaf(dtype, (n3, n2, n1, n0), scale=scale), 3, 2, 1, 0)


DENSE_ROWS = ("dense", "padded", "rows", "planes")
ANY_LAYOUT = (*DENSE_ROWS, "transposed", "reversed")


def random_blocks(dtype: GGMLType, rng: np.random.Generator, size: int, scale: float) -> bytes:
    """Any bytes, but for the scales of scales, with which values are about as large as `scale`."""
    blocks = np.frombuffer(rng.bytes(size), np.uint8).reshape(-1, SIZES[dtype].type_size).copy()
    records = blocks.view(QUANTS[dtype].layout).reshape(-1)
    typical = scale / {"IQ1_S": 8, "IQ1_M": 8, "IQ3_XXS": 120, "IQ3_S": 128}.get(dtype.name, 40)
    d = (typical * rng.choice([-1.0, 1.0], len(blocks))).astype(np.float16).view(np.uint16)
    if dtype == GGMLType.IQ1_M:  # four bits in each number
        parts = (d[:, None] >> np.arange(0, 16, 4, dtype=np.uint16)) << np.uint16(12)
        records["scales"] = (records["scales"] & np.uint16(0xFFF)) | parts
    else:
        records["d"] = d
    return blocks.tobytes()


def to_bytes(dtype: GGMLType, data: np.ndarray) -> bytes:
    if dtype in QUANTS:
        quant = QUANTS[dtype]
        return quant.quantize(np.ascontiguousarray(data, np.float32).reshape(-1, quant.block_size)).tobytes()
    kind = {I32: np.int32, I64: np.int64, GGMLType.I8: np.int8, GGMLType.I16: np.int16, GGMLType.F64: np.float64}
    return np.ascontiguousarray(data).astype(kind[dtype]).tobytes()


def layouts(dtype: GGMLType, allowed: Sequence[str] = ANY_LAYOUT) -> st.SearchStrategy[str]:
    """Elements of a block cannot be apart from each other."""
    return st.sampled_from([x for x in allowed if SIZES[dtype].block_size == 1 or x in DENSE_ROWS])


@st.composite
def operands(draw: Callable, specials: bool | None = None) -> Operands:
    seed = draw(st.integers(0, 2**32 - 1))
    return Operands(np.random.default_rng(seed), draw(st.booleans()) if specials is None else specials)


@st.composite
def shapes(draw: Callable, dtype: GGMLType = F32, limit: int = 30000) -> tuple[int, int, int, int]:
    """Edge sizes in dimension 0 (whole blocks), few elsewhere; now and then a dimension of 0."""
    block = SIZES[dtype].block_size
    n0 = (
        draw(st.sampled_from(EDGE_SIZES))
        if block == 1
        else block * draw(st.sampled_from((1, 2, 3, 8, 9, 18) if block == 32 else (1, 2, 3)))
    )
    rest = [draw(st.sampled_from(SMALL_SIZES)) for _ in range(3)]
    n1 = draw(st.sampled_from((rest[0], 33))) if n0 < 100 else rest[0]
    ne = [n0, n1, rest[1], rest[2] if n0 < 100 else 1]
    while prod(ne) > limit:
        ne[ne.index(max(ne[1:]), 1)] = 1
    if draw(st.integers(0, 30)) == 0:
        ne[draw(st.integers(0, 3))] = 0
    return ne[0], ne[1], ne[2], ne[3]


def divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0] or [0]
