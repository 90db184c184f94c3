"""What follows a matrix multiplication with one column is done in its launch: the bits are those of single launches, run after
run, and a launch has no more in it than what may be made at once.

On an emulated GPU.
"""

from collections.abc import Callable

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed: pip install '.[cuda]'")

from cuda_device import EmulatedDevice
from cuda_emulator import EmulatedGPU
from cuda_recording import RecordingGPU, place
from op_cases import F16, F32, Operands

from pyggml import ops
from pyggml.backend.cuda import device as cuda_device
from pyggml.backend.cuda.device import CudaDevice
from pyggml.dtypes import GGMLType
from pyggml.graph import build_forward
from pyggml.kernels.cuda import attention_tile
from pyggml.tensor import Flag, Tensor

T = GGMLType


def layer(make: Operands, dtype: GGMLType, n: int, wide: int, biases: bool = False) -> list[Tensor]:
    """Part of a layer for one token: the norm of what is there; three products of it; another product onto the residual; its norm;
    a GLU; a product onto the residual; the norm of that. Results that the next layer would read."""
    x = make.leaf(F32, (n,))

    def matrix(n_in: int, n_out: int) -> Tensor:
        return make.leaf(dtype, (n_in, n_out), scale=n_in**-0.5)

    def normed(t: Tensor) -> Tensor:
        return ops.mul(ops.rms_norm(t, 1e-5), make.leaf(F32, (n,)))

    first = normed(x)
    three = [ops.mul_mat(matrix(n, rows), first) for rows in (n, 33, 40)]
    if biases:
        three = [ops.add(y, make.leaf(F32, (y.ne[0],))) for y in three]
    after = ops.add(ops.mul_mat(matrix(n, n), three[0]), x)
    second = normed(after)
    gate = ops.swiglu(ops.mul_mat(matrix(n, wide), second), ops.mul_mat(matrix(n, wide), second))
    end = ops.add(ops.mul_mat(matrix(wide, n), gate), after)
    return [*three[1:], ops.scale(normed(end), 1.0), ops.scale(end, 1.0)]


def computed(results: list[Tensor], make: Operands, seed: int = 0) -> tuple[list[bytes], list[str]]:
    """The bytes of the results after three runs, of which the last is a graph's where it is long enough; what is launched."""
    device = EmulatedDevice(EmulatedGPU(seed=seed))
    for t in results:
        t.flags |= Flag.OUTPUT
    place(device, *results)
    for t, data in make.contents.values():
        t.buffer.set(t, data)
    backend = device.open()
    plan = backend.plan(build_forward(results))
    found = []
    for _ in range(3):
        for t in results:
            t.buffer.memset(t, 0xFF)
        backend.compute(plan)
        found.append([t.buffer.get(t) for t in results])
    assert found[0] == found[1] == found[2], "runs differ"
    return found[0], [step[0].factory for step in plan.steps]


def alone(monkeypatch: pytest.MonkeyPatch, results: list[Tensor], make: Operands) -> list[bytes]:
    """Each node in a launch of its own."""
    with monkeypatch.context() as patch:
        patch.setattr(cuda_device, "TAKING", {})
        patch.setattr(cuda_device, "FUSIONS", {})
        found, names = computed(results, make)
    assert len(names) > 15
    return found


SHAPES = [(T.Q4_0, 256, 384, False), (T.Q6_K, 256, 256, True), (T.MXFP4, 160, 96, False), (F16, 264, 384, True)]
"""Rows and the GLU's; of 96 rows and 160 nobody makes the bytes beside them."""


@pytest.mark.parametrize(("dtype", "n", "wide", "biases"), SHAPES, ids=lambda x: getattr(x, "name", str(x)))
def test_the_bits_are_those_of_single_launches(
    monkeypatch: pytest.MonkeyPatch, dtype: GGMLType, n: int, wide: int, biases: bool
) -> None:
    make = Operands(np.random.default_rng(0))
    results = layer(make, dtype, n, wide, biases)
    expected = alone(monkeypatch, results, make)
    for seed in (1, 2):  # other orders of blocks and warps
        found, names = computed(results, make, seed)
        assert found == expected
    products = ["products", "products", "glu", "products"]
    if dtype == F16:
        assert names == ["rms_norm", *products, "scale", "scale"]
    elif wide % 128:
        assert names == [
            "normed_rows",
            "products",
            "quantize",
            "products",
            "glu",
            "quantize",
            "products",
            "scale",
            "scale",
        ]
    else:
        assert names == ["normed_rows", "products", "quantize", *products[1:], "scale", "scale"]


def names(results: list[Tensor], change: Callable[[], None] = lambda: None) -> list[str]:
    """What a GPU is asked that runs nothing."""
    device = CudaDevice(RecordingGPU())
    place(device, *results)
    change()
    return [step[0].factory for step in device.open().plan(build_forward(results)).steps]


def three(make: Operands) -> tuple[list[Tensor], Tensor]:
    x = make.leaf(F32, (64,))
    return [ops.mul_mat(make.leaf(F16, (64, rows)), x) for rows in (8, 9, 10)], x


def test_products_of_the_same_are_one_launch_where_none_is_in_the_way_of_another() -> None:
    make = Operands(np.random.default_rng(0))
    (a, b, c), x = three(make)
    assert names([a, b, c]) == ["products"]
    a, b, c = (ops.mul_mat(t.src[0], x) for t in (a, b, c))
    between = ops.scale(a, 2.0)
    assert names([a, between, b, c]) == ["products", "scale"]

    def over() -> None:
        between.data = c.data

    assert names([a, between, b, c], over) == ["products", "scale", "products"]
    other = [ops.mul_mat(make.leaf(F16, (64, 8)), make.leaf(F32, (64,))) for _ in range(2)]
    assert names(other) == ["products", "products"]
    more = [ops.mul_mat(make.leaf(F16, (64, 8)), x) for _ in range(4)]
    assert names(more) == ["products", "products"]
    mixed = [ops.mul_mat(make.leaf(t, (64, 8)), x) for t in (F16, T.BF16, F16)]
    assert names(mixed) == ["products", "products"]


def test_a_product_that_is_added_to_another_comes_first() -> None:
    make = Operands(np.random.default_rng(0))
    (a, *_), x = three(make)
    total = ops.add(ops.mul_mat(make.leaf(F16, (64, 8)), x), a)
    assert names([a, total]) == ["products", "products"]


@pytest.mark.parametrize("change", ["read elsewhere", "other rows", "another weight", "over the weight"])
def test_a_norm_that_must_wait_has_a_launch_of_its_own(change: str) -> None:
    make = Operands(np.random.default_rng(0))
    x, w = make.leaf(F32, (64,)), make.leaf(F32, (64,))
    total = ops.add(ops.mul_mat(make.leaf(F16, (64, 64)), x), make.leaf(F32, (64,)))
    norm = ops.rms_norm(ops.reshape(total, 32, 2) if change == "other rows" else total, 1e-5)
    result = ops.mul(norm, make.leaf(F32, (32,)) if change == "other rows" else w)
    results = [result]
    if change == "read elsewhere":
        results.append(ops.scale(norm, 2.0))
    if change == "another weight":
        results = [ops.mul(norm, make.leaf(F32, (64, 1, 1, 1), np.ones(64))), ops.scale(norm, 2.0)]

    def over() -> None:
        if change == "over the weight":
            result.data = w.data

    found = names(results, over)
    assert found[0] == "products" and "rms_norm" in found[1:]


@pytest.mark.parametrize("n_kv", [40, 700])
def test_attention_makes_the_bytes_of_its_result(monkeypatch: pytest.MonkeyPatch, n_kv: int) -> None:
    """One block for all keys, and several of which the last one adds up."""
    make = Operands(np.random.default_rng(0))
    q = make.leaf(F32, (64, 1, 4))
    k, v = (make.leaf(F16, (64, n_kv, 2)) for _ in range(2))
    mask = make.leaf(F16, (n_kv, 1), np.where(make.rng.random(n_kv) < 0.3, -np.inf, 0.0))
    found = ops.reshape(ops.flash_attn_ext(q, k, v, mask, 0.125), 256, 1)
    results = [ops.scale(ops.mul_mat(make.leaf(T.Q4_0, (256, 33)), found), 1.0)]
    with monkeypatch.context() as patch:
        patch.setattr(attention_tile, "wanted", lambda *_: None)
        expected, names = computed(results, make)
    assert names == ["attend", "quantize", "products", "scale"]
    found_bytes, names = computed(results, make, 1)
    assert names == ["attend", "products", "scale"] and found_bytes == expected
