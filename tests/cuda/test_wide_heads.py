"""Attention with heads of more than 128 elements on tensor cores: ends of tiles, rows that see nothing, windows, blocks that share the
cache. On an emulated GPU, held against the reference."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed: pip install '.[cuda]'")

from cuda_device import EmulatedDevice
from op_cases import BF16, F16, F32, Case, Operands
from op_check import check, every_tensor, run

from pyggml import ops
from pyggml.dtypes import GGMLType
from pyggml.kernels.cuda.attention import lower
from pyggml.kernels.cuda.attention_load import TYPES
from pyggml.lowering.cuda import Builder
from pyggml.tensor import Tensor

T = GGMLType
RAGGED, LATENT = (80, 144), (576, 512)
"""Elements of keys and of values: no whole parts of 64; those of latent attention, whose values are the first of their keys'."""
LAW = 1e-6
"""Of NMSE: queries, keys, values and weights are rounded to F16."""


class Asked(EmulatedDevice):
    """Notes kernel and grid of each launch."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.gpu.multiprocessors = 1  # few blocks are enough, each with several tiles of keys
        self.grids: list[tuple[str, tuple[int, ...]]] = []
        right = self.gpu.launch

        def launch(kernel, grid, *more):
            self.grids.append((kernel.label, grid))
            right(kernel, grid, *more)

        self.gpu.launch = launch


@pytest.fixture(scope="module")
def device() -> Asked:
    return Asked()


def attention(
    sizes: tuple[int, int], n_tokens: int, n_kv: int, heads: tuple[int, int] = (2, 1), batches: int = 1, dtype: GGMLType = F16,
    dtype_v: GGMLType | None = None, mask: np.ndarray | None = None, max_bias: float = 0.0, softcap: float = 0.0,
    sinks: bool = False, odd: slice = slice(0, 0),
) -> Case:  # fmt: skip
    """sizes: of keys and values; heads: of queries, of both. `odd` cells, and those behind n_kv, of which a cache has more, are NaN."""
    make = Operands(np.random.default_rng(n_kv + n_tokens))
    q = make.like("planes", F32, (sizes[0], n_tokens, heads[0], batches), scale=2.0)
    found = []
    for of, size in ((dtype, sizes[0]), (dtype_v or dtype, sizes[1])):
        cells = make.rng.standard_normal((batches, heads[1], n_kv + 3, size)).astype(np.float32)
        cells[:, :, n_kv:], cells[:, :, odd] = np.nan, np.nan
        whole = make.leaf(of, (size, n_kv + 3, heads[1], batches), cells)
        found.append(ops.view(whole, (size, n_kv, heads[1], batches), whole.nb[1:], 0))
    k, v = found
    if sizes == LATENT and dtype_v is None:
        v = ops.view(k.view_src, (sizes[1], *k.ne[1:]), k.nb[1:], 0)
    m = None if mask is None else make.leaf(F16, mask.shape[::-1], mask)
    s = make.leaf(F32, (heads[0],)) if sinks else None
    node = ops.flash_attn_ext(q, k, v, m, sizes[0] ** -0.5, max_bias, softcap, sinks=s)
    used = {id(t): make.contents[id(t)] for t in every_tensor(node) if id(t) in make.contents}
    return Case(node, used, LAW, atol=1e-6)


def window(n_tokens: int, n_kv: int, width: int) -> np.ndarray:
    """The last tokens of n_kv, each of which sees so many: itself and those before it."""
    behind = np.arange(n_kv - n_tokens, n_kv)[:, None] - np.arange(n_kv)
    return np.where((behind >= 0) & (behind < width), 0.0, -np.inf)


def some(seed: int, *shape: int) -> np.ndarray:
    """A mask that hides half of all, and one row's everything."""
    rng = np.random.default_rng(seed)
    mask = np.where(rng.random(shape) < 0.5, -np.inf, rng.choice([0.0, -1.0], shape))
    mask[..., 0, :] = -np.inf
    return mask


CASES: dict[str, dict[str, Any]] = {
    "one cell": {"sizes": RAGGED, "n_tokens": 9, "n_kv": 1},
    "one less than a tile": {"sizes": RAGGED, "n_tokens": 16, "n_kv": 63},
    "one more than a tile, two rows more than a block": {"sizes": RAGGED, "n_tokens": 17, "n_kv": 65},
    "windows that pass over tiles": {
        "sizes": RAGGED, "n_tokens": 20, "n_kv": 300, "heads": (4, 2), "mask": window(20, 300, 90), "odd": slice(0, 128)},
    "a mask, slopes and sinks for each head, in two batches": {
        "sizes": RAGGED, "n_tokens": 6, "n_kv": 70, "heads": (6, 2), "batches": 2, "mask": some(0, 2, 6, 6, 70), "max_bias": 8.0,
        "sinks": True},
    "a soft-cap": {"sizes": RAGGED, "n_tokens": 10, "n_kv": 200, "mask": some(1, 10, 200), "softcap": 3.0},
    "one token, whose blocks share the cache": {
        "sizes": LATENT, "n_tokens": 1, "n_kv": 330, "heads": (12, 1), "dtype": T.Q8_0, "sinks": True},
    "a block that sees nothing": {
        "sizes": LATENT, "n_tokens": 2, "n_kv": 200, "heads": (8, 1), "dtype": T.Q4_0, "dtype_v": F16, "mask": window(2, 200, 50),
        "odd": slice(0, 64)},
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_wide_heads(device: Asked, name: str) -> None:
    device.grids.clear()
    case = attention(**CASES[name])
    check(case, device)
    ((label, grid),) = device.grids
    assert label.startswith("attention_wide-attend-")
    assert (grid[2] > 1) == (CASES[name]["n_kv"] > 64 and grid[0] * grid[1] == 1), "blocks share where they are few"
    if name == "a soft-cap":
        _, values = run(case, device)
        assert not values[0, 0].any() and values[0, 1].any(), "who sees nothing"


def test_every_type_of_keys_and_values(device: Asked) -> None:
    device.grids.clear()
    for i, dtype in enumerate(TYPES):
        check(attention(LATENT, 8, 70, dtype=dtype, dtype_v=TYPES[i - 1]), device)
    assert {label for label, _ in device.grids} == {"attention_wide-attend-576-512-16-1"}


@pytest.mark.parametrize(
    ("cc", "sizes", "dtype", "kernel"),
    [
        ((8, 0), (256, 256), F16, "attention_wide"), ((8, 0), (192, 128), T.Q4_0, "attention_wide"),
        ((8, 0), (128, 128), F16, "attention_tile"), ((7, 5), (256, 256), F16, "attention"), ((8, 0), (256, 256), BF16, "attention"),
        ((8, 0), (256, 256), F32, "attention"), ((8, 0), (200, 200), F16, "attention"),
        ((8, 0), (576, 512), F16, "attention_wide"), ((8, 0), (592, 512), F16, "attention"), ((8, 0), (64, 128), F16, "attention"),
    ],
)  # fmt: skip
def test_which_kernel_takes_it(cc: tuple[int, int], sizes: tuple[int, int], dtype: GGMLType, kernel: str) -> None:
    q, k, v = Tensor(F32, (sizes[0], 40, 2)), Tensor(dtype, (sizes[0], 64)), Tensor(dtype, (sizes[1], 64))
    node = ops.flash_attn_ext(q, k, v, None, 0.1)
    for i, t in enumerate((q, k, v, node)):
        t.data = 1024 * i
    builder = Builder(cc, 132, 96 * 1024)
    lower(builder, node)
    (launch,) = builder.launches
    assert launch.head.spec.module == kernel and launch.head.shared < 64 * 1024
