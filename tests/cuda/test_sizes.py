"""Products, experts and attention at the sizes of models, where a race or a wrong block shows: equal rows and columns give
equal bits wherever they lie, run after run. On an emulated GPU at small sizes, with `pytest -m gpu` on a GPU."""

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed: pip install '.[cuda]'")

from cuda_device import EmulatedDevice
from op_cases import F16, F32, I32, Case, Operands
from op_check import check

from pyggml import ops
from pyggml.dtypes import GGMLType
from pyggml.graph import build_forward
from pyggml.quants import QUANTS
from pyggml.tensor import Tensor

T = GGMLType
BF16 = T.BF16
BLOCKS = (T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0, T.IQ4_NL, T.Q2_K, T.Q3_K, T.Q4_K, T.Q5_K, T.Q6_K, T.IQ4_XS)
TYPES = [("device", t) for t in (T.Q4_0, F16)] + [
    pytest.param("card", t, marks=pytest.mark.gpu) for t in (*BLOCKS, F16, BF16, F32)
]
WEIGHT_ROWS, COLUMNS = 16, 5
"""So many differ; the others are copies of them."""


@pytest.fixture
def on(request, where):
    return request.getfixturevalue(where)


def packed(dtype: GGMLType, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """-> (each row's bytes, the numbers that they stand for)."""
    if dtype == F32:
        raw, meant = values, values
    elif dtype == F16:
        raw = values.astype(np.float16)
        meant = raw
    elif dtype == BF16:
        raw = (values.view(np.uint32) >> 16).astype(np.uint16)
        meant = (raw.astype(np.uint32) << 16).view(np.float32)
    else:
        raw = QUANTS[dtype].quantize(values.reshape(-1, QUANTS[dtype].block_size))
        meant = QUANTS[dtype].dequantize(raw).reshape(values.shape)
    return np.ascontiguousarray(raw).view(np.uint8).reshape(len(values), -1), meant.astype(np.float64)


def put(device, t: Tensor, data: np.ndarray) -> Tensor:
    device.alloc_buffer(t.nbytes).place(t, 0)
    t.buffer.set(t, np.ascontiguousarray(data).reshape(-1).view(np.uint8))
    return t


def results(device, y: Tensor, runs: int) -> list[np.ndarray]:
    """What each of the runs leaves in y, where NaNs lay before the first."""
    graph = build_forward([y])
    put(device, y, np.full(y.nelements, np.nan, np.float32))
    backend = device.open()
    plan = backend.plan(graph)
    found = []
    for _ in range(runs):
        backend.compute(plan)
        found.append(np.frombuffer(y.buffer.get(y), np.float32).reshape(y.ne[2], y.ne[1], y.ne[0]))
    return found


def hold(found: list[np.ndarray], copies: list[np.ndarray], expected: np.ndarray, nmse: float) -> None:
    """`copies`: for each axis of a result which element of `expected` stands there."""
    for run, values in enumerate(found):
        assert values.tobytes() == found[0].tobytes(), f"run {run} gave other bits than the first"
    base = found[0][np.ix_(*(np.array([np.flatnonzero(c == i)[0] for i in range(c.max() + 1)]) for c in copies))]
    again = base[np.ix_(*copies)]
    differ = np.argwhere(found[0].view(np.uint32) != again.view(np.uint32))
    assert not differ.size, f"{len(differ)} elements are no copies, first {differ[0]}"
    error = ((base - expected) ** 2).sum() / (expected**2).sum()
    assert error <= nmse, error


def counts(device, few: int, many: int) -> int:
    return few if isinstance(device, EmulatedDevice) else many


@pytest.mark.parametrize(("where", "dtype"), TYPES)
def test_products(on, dtype):
    rng = np.random.default_rng(0)
    emulated = isinstance(on, EmulatedDevice)
    for k in (512,) if emulated else (4096, 14336):
        rows, weights = packed(dtype, (rng.standard_normal((WEIGHT_ROWS, k)) * k**-0.5).astype(np.float32))
        columns = rng.standard_normal((COLUMNS, k)).astype(np.float32)
        expected = (columns.astype(np.float64) @ weights.T)[None]
        for n in (130,) if emulated else (1027, 4096):
            which = np.arange(n) % WEIGHT_ROWS
            w = put(on, Tensor(dtype, (k, n)), rows[which])
            for m in (1, 9, 70) if emulated else (1, 3, 8, 9, 64, 65, 512):
                column = np.arange(m) % COLUMNS
                x = put(on, Tensor(F32, (k, m)), columns[column])
                y = ops.mul_mat(w, x)
                found = results(on, y, counts(on, 2, 12))
                hold(found, [np.zeros(1, int), column, which], expected[:, : min(m, COLUMNS)], 1e-3)
                x.buffer.free()
                y.buffer.free()
            w.buffer.free()


@pytest.mark.parametrize(("where", "dtype"), TYPES)
def test_products_of_experts(on, dtype):
    """Tokens with the same numbers choose the same two experts."""
    rng = np.random.default_rng(1)
    k, n, experts, tokens = (
        (512, 130, 4, (3, 40)) if isinstance(on, EmulatedDevice) else (2048, 1408, 64, (1, 5, 33, 512))
    )
    few = min(experts, 6)
    rows, weights = packed(dtype, (rng.standard_normal((few * WEIGHT_ROWS, k)) * k**-0.5).astype(np.float32))
    which = np.arange(n) % WEIGHT_ROWS
    order = (np.arange(experts) % few)[:, None] * WEIGHT_ROWS + which
    w = put(on, Tensor(dtype, (k, n, experts)), rows[order.ravel()])
    columns = rng.standard_normal((COLUMNS, k)).astype(np.float32)
    choices = np.array([rng.permutation(experts)[:2] for _ in range(COLUMNS)])
    chosen = weights.reshape(few, WEIGHT_ROWS, k)[choices % few]
    expected = np.einsum("tk,terk->ter", columns.astype(np.float64), chosen)
    for m in tokens:
        token = np.arange(m) % COLUMNS
        x = put(on, Tensor(F32, (k, 1, m)), columns[token])
        ids = put(on, Tensor(I32, (2, m)), choices[token].astype(np.int32))
        y = ops.mul_mat_id(w, x, ids)
        hold(results(on, y, counts(on, 2, 12)), [token, np.arange(2), which], expected[: min(m, COLUMNS)], 1e-3)
        for t in (x, ids, y):
            t.buffer.free()
    w.buffer.free()


ATTENTION = [("device", F16), ("device", T.Q4_0)] + [
    pytest.param("card", t, marks=pytest.mark.gpu) for t in (F16, T.Q8_0, T.Q4_0)
]


@pytest.mark.parametrize("head", [64, 128])
@pytest.mark.parametrize(("where", "dtype"), ATTENTION)
def test_attention(on, dtype, head):
    hold_attention(on, dtype, head, head)


@pytest.mark.gpu
@pytest.mark.parametrize(("head", "head_v"), [(256, 256), (192, 128), (512, 512), (576, 512)])
@pytest.mark.parametrize("dtype", [F16, T.Q8_0, T.Q4_0])
def test_attention_with_large_heads(card, dtype, head, head_v):
    hold_attention(card, dtype, head, head_v)


def hold_attention(on, dtype, head, head_v):
    """All heads have the same keys and queries; past tokens are seen, later ones are not."""
    rng = np.random.default_rng(2)
    emulated = isinstance(on, EmulatedDevice)
    heads, kv_heads = (4, 1) if emulated else (32, 8)
    real = ((1, 1024), (1, 32768), (7, 4096), (8, 8192), (9, 8192), (512, 512), (512, 8192))
    for n_tokens, n_kv in ((1, 300), (40, 96)) if emulated else real:
        query = rng.standard_normal((1, head)).astype(np.float32)
        (raw_k, keys), (raw_v, values) = (
            packed(dtype, rng.standard_normal((n_kv, size)).astype(np.float32)) for size in (head, head_v)
        )
        seen = np.arange(n_kv)[None] <= n_kv - n_tokens + np.arange(n_tokens)[:, None]
        bias = np.where(seen, 0.0, -np.inf)
        q = put(on, Tensor(F32, (head, n_tokens, heads)), np.tile(query, (heads * n_tokens, 1)))
        mask = put(on, Tensor(F16, (n_kv, n_tokens)), bias.astype(np.float16))
        k, v = (
            put(on, Tensor(dtype, (size, n_kv, kv_heads)), np.tile(raw, (kv_heads, 1)))
            for size, raw in ((head, raw_k), (head_v, raw_v))
        )
        y = ops.flash_attn_ext(q, k, v, mask, head**-0.5)
        scores = (query @ keys.T) * head**-0.5 + bias
        weights = np.exp(scores - scores.max(1, keepdims=True))
        expected = (weights / weights.sum(1, keepdims=True)) @ values
        found = results(on, y, counts(on, 2, 12))
        hold(found, [np.arange(n_tokens), np.zeros(heads, int), np.arange(head_v)], expected[:, None], 1e-5)
        for t in (q, mask, k, v, y):
            t.buffer.free()


@pytest.mark.gpu
@pytest.mark.parametrize(
    "op", ["rms_norm", "soft_max", "rope", "argsort", "add", "glu", "get_rows", "set_rows", "cpy", "argmax", "sum_rows"]
)
def test_other_ops_at_the_sizes_of_models(card, op):
    rng = np.random.default_rng(3)
    make = Operands(rng)
    tokens = np.arange(512)
    x = make.leaf(F32, (4096, 512))
    nodes = {
        "rms_norm": lambda: ops.rms_norm(x, 1e-5),
        "soft_max": lambda: ops.soft_max(make.leaf(F32, (128256, 3))),
        "rope": lambda: ops.rope(make.leaf(F32, (128, 32, 512)), make.leaf(I32, (512,), tokens + 100_000), 128),
        "argsort": lambda: ops.argsort(make.leaf(F32, (128256, 2), rng.permutation(2 * 128256))),
        "add": lambda: ops.add(x, make.leaf(F32, (4096, 512))),
        "glu": lambda: ops.glu(make.leaf(F32, (14336, 64)), make.leaf(F32, (14336, 64)), ops.GluOp.SWIGLU),
        "get_rows": lambda: ops.get_rows(
            make.leaf(T.Q4_K, (4096, 1000)), make.leaf(I32, (512,), rng.integers(0, 1000, 512))
        ),
        "set_rows": lambda: ops.set_rows(
            make.leaf(T.Q8_0, (1024, 4096)), make.leaf(F32, (1024, 512)), make.leaf(T.I64, (512,), rng.permutation(4096)[:512])
        ),
        "cpy": lambda: ops.cpy(ops.transpose(x), make.leaf(F16, (512, 4096))),
        "argmax": lambda: ops.argmax(make.leaf(F32, (128256, 7), rng.permutation(7 * 128256))),
        "sum_rows": lambda: ops.sum_rows(x),
    }  # fmt: skip
    check(Case(nodes[op](), make.contents, 1e-6, atol=1e-6), card)


# ---- the tests themselves


COPIES = [np.zeros(1, int), np.arange(40) % COLUMNS, np.arange(130) % WEIGHT_ROWS]
EXPECTED = np.random.default_rng(4).standard_normal((1, COLUMNS, WEIGHT_ROWS)).astype(np.float32)


@pytest.mark.parametrize(
    ("where", "run", "why"),
    [((0, 17, 99), 1, "run 1 gave other bits"), ((0, 17, 99), None, "1 elements are no copies"), (None, None, "")],
)
def test_one_wrong_bit_anywhere_is_seen(where, run, why):
    found = [EXPECTED[np.ix_(*COPIES)].copy() for _ in range(3)]
    hold(found, COPIES, EXPECTED, 0.0)
    if where is None:
        with pytest.raises(AssertionError):
            hold(found, COPIES, EXPECTED + 0.1, 1e-3)
        return
    for values in found if run is None else [found[run]]:
        values.view(np.uint32)[where] ^= 1
    with pytest.raises(AssertionError, match=why):
        hold(found, COPIES, EXPECTED, 1e-3)
