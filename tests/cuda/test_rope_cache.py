"""ROPE of queries and keys and the writes to the cache in one launch: the bytes are those of single launches.

On an emulated GPU.
"""

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed: pip install '.[cuda]'")

from cuda_device import EmulatedDevice
from cuda_recording import RecordingGPU, place
from op_cases import F16, F32, I32, I64, Operands

from pyggml import ops
from pyggml.backend.cuda import device as cuda_device
from pyggml.backend.cuda.device import CudaDevice
from pyggml.dtypes import GGMLType
from pyggml.errors import ComputeError
from pyggml.graph import build_forward
from pyggml.ops import ROPE_NEOX, ROPE_NORMAL
from pyggml.tensor import Flag, Tensor

HEAD, HEADS, KV_HEADS, CELLS = 20, 4, 2, 9


def step(
    make: Operands, tokens: int, *, mode: int = ROPE_NORMAL, n_dims: int = HEAD, cache: GGMLType = F16,
    cells: list[int] | None = None, ids: GGMLType = I64,
) -> tuple[list[Tensor], list[Tensor]]:  # fmt: skip
    """-> (what is computed, and the caches that it is written to)."""
    positions = make.leaf(I32, (tokens,), np.arange(7, 7 + tokens))
    factors = make.leaf(F32, (n_dims // 2,), make.rng.uniform(1, 4, n_dims // 2))
    q, k = (make.leaf(F32, (HEAD, n, tokens)) for n in (HEADS, KV_HEADS))
    turned = [ops.rope(t, positions, n_dims, mode=mode, factors=factors) for t in (q, k)]
    v = make.leaf(F32, (33 if cache in (F16, F32) else 64, tokens))
    rows = make.leaf(ids, (tokens,), np.array(cells or list(range(3, 3 + tokens))))
    flat = ops.reshape(turned[1], HEAD * KV_HEADS, tokens)
    caches = [make.leaf(cache if i else F16, (t.ne[0], CELLS)) for i, t in enumerate((flat, v))]
    return [turned[0], *(ops.set_rows(c, t, rows) for c, t in zip(caches, (flat, v), strict=True))], caches


def computed(results: list[Tensor], kept: list[Tensor], make: Operands) -> tuple[list[bytes], list[str]]:
    device = EmulatedDevice()
    results[0].flags |= Flag.OUTPUT
    place(device, *results)
    for t, data in make.contents.values():
        t.buffer.set(t, data)
    backend = device.open()
    plan = backend.plan(build_forward(results))
    backend.compute(plan)
    names = [s[0].factory for s in plan.steps]
    return [t.buffer.get(t) for t in (results[0], *kept)], names


@pytest.mark.parametrize(
    ("tokens", "options"),
    [
        (1, {}), (3, {"mode": ROPE_NEOX}), (1, {"n_dims": 12, "ids": I32}), (2, {"n_dims": 12, "mode": ROPE_NEOX, "cache": F32}),
        (1, {"cache": GGMLType.BF16}),
    ],
    ids=str,
)  # fmt: skip
def test_the_bytes_are_those_of_single_launches(monkeypatch: pytest.MonkeyPatch, tokens: int, options: dict) -> None:
    make = Operands(np.random.default_rng(0))
    results, caches = step(make, tokens, **options)
    with monkeypatch.context() as patch:
        patch.setattr(cuda_device, "TAKING", {})
        expected, names = computed(results, caches, make)
    assert names == ["rope", "rope", "set_rows", "set_rows"]
    found, names = computed(results, caches, make)
    assert names == ["rope_cache"] and found == expected


def test_a_row_that_is_not_there_is_reported() -> None:
    make = Operands(np.random.default_rng(0))
    results, caches = step(make, 2, cells=[3, CELLS])
    with pytest.raises(ComputeError, match=rf"SET_ROWS .*{CELLS}\b.*\b{CELLS} rows"):
        computed(results, caches, make)


def names(results: list[Tensor]) -> list[str]:
    device = CudaDevice(RecordingGPU())
    place(device, *results)
    return [s[0].factory for s in device.open().plan(build_forward(results)).steps]


def test_only_what_nobody_else_needs_between() -> None:
    make = Operands(np.random.default_rng(0))
    results, _ = step(make, 1, cache=GGMLType.Q8_0)
    assert names(results) == ["rope_cache", "set_rows"]  # values become blocks
    results, _ = step(make, 1)
    keys = results[1].src[0].src[0]
    assert names([*results, ops.scale(keys, 2.0)]) == ["rope_cache", "set_rows", "set_rows", "scale"]
    results, _ = step(make, 1)
    assert names([results[0]]) == ["rope"]
    results, _ = step(make, 1)
    results[1].src[0].flags |= Flag.OUTPUT
    assert names(results) == ["rope_cache", "set_rows", "set_rows"]
    other, _ = step(make, 1, n_dims=12)
    assert names([results[0], other[0]]) == ["rope", "rope"]
