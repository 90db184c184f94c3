"""FLASH_ATTN_EXT: grouped heads, masks, ALiBi, soft cap, sinks, keys and values of several types."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import BF16, BLOCKS, DENSE_ROWS, F16, F32, READ_ONLY, SIZES, Case, Operands, layouts, operands
from op_check import assert_caught, check, every_tensor, mutant_of, run

from pyggml import ops
from pyggml.backend.base import Device
from pyggml.backend.reference import ReferenceDevice
from pyggml.backend.reference import attention as reference
from pyggml.backend.reference.values import Values
from pyggml.dtypes import GGMLType
from pyggml.kernels.cpu.formats import CONVERTIBLE
from pyggml.kernels.cuda.blocks import SIMPLE
from pyggml.ops import Op
from pyggml.tensor import Tensor

KV_TYPES = (*(F16, F16, F32, BF16, *SIMPLE) * 4, *BLOCKS)
"""Mostly types that every device reads, so that a good share of the cases is computed on each (op_shares.py)."""
UNPACKED = (*(t for t in BLOCKS if t not in (GGMLType.Q8_K, *CONVERTIBLE)), *READ_ONLY)


@st.composite
def attention_cases(draw: Callable, kv_types: tuple[GGMLType, ...] = KV_TYPES) -> Case:
    make = draw(operands(specials=False))
    type_k, type_v = (draw(st.sampled_from(kv_types)) for _ in range(2))
    if draw(st.booleans()):
        type_v = type_k

    def head_of(dtype: GGMLType) -> int:
        block = SIZES[dtype].block_size
        sizes = {1: (1, 8, 31, 40, 64, 72, 80, 100), 32: (32, 64, 96), 64: (64, 128), 128: (128,), 256: (256,)}[block]
        return draw(st.sampled_from(sizes))

    head, head_v = head_of(type_k), head_of(type_v)
    if type_k == type_v and draw(st.booleans()):
        head_v = head
    # (heads of k, of v, of q): q's are shared by one to six, also otherwise for v than for k
    k_heads, v_heads, heads = draw(
        st.sampled_from(
            ((1, 1, 1), (1, 1, 2), (1, 1, 3), (3, 3, 9), (2, 2, 8), (2, 2, 10), (1, 1, 6), (2, 4, 8), (3, 2, 6))
        )
    )
    n_tokens, n_kv = draw(
        st.sampled_from(
            (
                (1, 1),
                (1, 31),
                (1, 513),
                (2, 65),
                (2, 256),
                (3, 70),
                (7, 32),
                (33, 1),
                (65, 31),
                (26, 70),
                (70, 130),
                (5, 1100),
            )
        )
    )
    n_batch = draw(st.sampled_from((1, 1, 2))) if n_tokens < 10 else 1
    q = make.like(draw(layouts(F32, DENSE_ROWS)), F32, (head, n_tokens, heads, n_batch))
    k = make.like(draw(layouts(type_k, DENSE_ROWS)), type_k, (head, n_kv, k_heads, n_batch))
    v = make.like(draw(layouts(type_v, DENSE_ROWS)), type_v, (head_v, n_kv, v_heads, n_batch))
    mask, max_bias = None, 0.0
    if draw(st.booleans()):
        rows = n_tokens + draw(st.sampled_from((0, 5)))
        ne = (n_kv, rows, draw(st.sampled_from((1, heads))), draw(st.sampled_from((1, n_batch))))
        values = np.where(make.rng.random(ne[::-1]) < 0.5, -np.inf, make.rng.choice([0.0, 0.0, -1.0], ne[::-1]))
        mask = make.leaf(F16, ne, values)
        max_bias = draw(st.sampled_from((0.0, 8.0)))
    softcap = draw(st.sampled_from((0.0, 0.0, 10.0)))
    node = ops.flash_attn_ext(q, k, v, mask, head**-0.5, max_bias, softcap)
    if draw(st.integers(0, 3)) == 0:
        node = with_sinks(node, make.leaf(F32, (heads,)))
    # ggml sums values of F16 in F16, and rounds queries to the type that keys are multiplied with
    return Case(node, make.contents, 1e-5, atol=1e-7, peer_nmse=2e-3 if SIZES[type_k].block_size > 1 else 5e-4)


def with_sinks(node: Tensor, sinks: Tensor) -> Tensor:
    q, k, v, mask = (*node.src, None)[:4]
    made = Tensor(node.type, node.ne, op=node.op, op_params=node.op_params, src=(q, k, v, mask, sinks))
    ops.check(made)
    return made


@settings(deadline=None, max_examples=80)
@given(case=attention_cases())
def test_attention(device: Device, case: Case) -> None:
    check(case, device)


@pytest.mark.parametrize("dtype", UNPACKED, ids=lambda t: t.name)
def test_types_that_are_unpacked_first(cpu_device: Device, dtype: GGMLType) -> None:
    """Keys of these and values of F16, and the other way round; as views of a cache, and a few tokens and more."""
    for n_tokens in (1, 5, 40):
        make = Operands(np.random.default_rng(n_tokens))
        q = make.like("planes", F32, (256, n_tokens, 4))
        blocks, floats = make.like("planes", dtype, (256, 70, 2)), make.like("planes", F16, (256, 70, 2))
        for k, v in ((blocks, floats), (floats, blocks)):
            node = ops.flash_attn_ext(q, k, v, None, 0.0625)
            assert cpu_device.supports_op(node)
            used = {id(t): make.contents[id(t)] for t in every_tensor(node) if id(t) in make.contents}
            check(Case(node, used, 1e-5, atol=1e-7), cpu_device)


def test_a_query_that_sees_nothing_gives_zeros(device: Device) -> None:
    make = Operands(np.random.default_rng(0))
    q, k, v = make.leaf(F32, (64, 2, 3)), make.leaf(F16, (64, 40)), make.leaf(F16, (64, 40))
    mask = np.zeros((2, 40))
    mask[1] = -np.inf
    case = Case(ops.flash_attn_ext(q, k, v, make.leaf(F16, (40, 2), mask), 0.125), make.contents, 1e-5, peer_nmse=5e-4)
    check(case, device)
    _, values = run(case, device)
    assert not values[0, 1].any() and values[0, 0].any()


@pytest.mark.parametrize("n_tokens", [2, 5, 70])
@pytest.mark.parametrize("dtype", [F16, GGMLType.Q8_0], ids=lambda t: t.name)
def test_what_the_mask_hides_is_not_looked_at(cpu_device: Device, dtype: GGMLType, n_tokens: int) -> None:
    """Cells of a KV cache that nobody has written yet may hold anything; so may those that only others see."""
    make = Operands(np.random.default_rng(0))
    garbage = np.ones((70, 64), np.float32)
    garbage[7:] = np.nan
    mask = np.zeros((n_tokens, 70))
    mask[:, 7:] = -np.inf
    mask[-1, 7:10] = 0.0
    k, v, m = (
        make.leaf(dtype, (64, 70), garbage),
        make.leaf(dtype, (64, 70), garbage),
        make.leaf(F16, (70, n_tokens), mask),
    )
    node = ops.flash_attn_ext(make.leaf(F32, (64, n_tokens)), k, v, m, 0.125)
    for device in (ReferenceDevice(), cpu_device):
        _, values = run(Case(node, make.contents, 0), device)
        assert np.allclose(values[0, :-1], 1.0, atol=1e-2), device.name
        assert np.isnan(values[0, -1]).all(), device.name


ORDINARY, NAN_KEY, LEAST_KEY, NAN_VALUE, MORE = range(5)
SEEN = (
    (ORDINARY,), (ORDINARY, NAN_KEY), (NAN_KEY,), (LEAST_KEY,), (ORDINARY, LEAST_KEY), (ORDINARY, NAN_VALUE), (),
    (NAN_KEY, LEAST_KEY), (NAN_KEY, NAN_VALUE, MORE), (LEAST_KEY, MORE), (ORDINARY, MORE),
)  # fmt: skip
"""Which runs of 64 keys each query sees."""


def odd_rows(dtype: GGMLType, n_tokens: int, seen: Sequence[tuple[int, ...]] = SEEN, sinks: bool = False) -> list[Case]:
    """`n_tokens` queries a node. Runs of 64 keys: usual ones; products that are NaN; products that are -inf; values that
    are NaN where the weight is 0 in 32 bits and in 64; usual ones again, for the last query with a mask of NaN."""
    cases = []
    for at in range(0, len(seen), n_tokens):
        make = Operands(np.random.default_rng(at))
        n_kv = 4 * 64 + 37
        kind = np.arange(n_kv) // 64
        q, k, v = (np.abs(make.rng.standard_normal((n, 64))) + 0.5 for n in (3 * n_tokens, n_kv, n_kv))
        k[kind == NAN_KEY], k[kind == LEAST_KEY], k[kind == NAN_VALUE] = np.nan, -np.inf, -300.0
        v[kind == NAN_VALUE] = np.nan
        mask = np.full((n_tokens, n_kv), -np.inf)
        for row, runs in zip(mask, seen[at:], strict=False):
            row[np.isin(kind, runs)] = 0.0
        if at + n_tokens >= len(seen) and MORE in seen[-1]:
            mask[-1, kind == MORE] = np.nan
        node = ops.flash_attn_ext(
            make.leaf(F32, (64, n_tokens, 3), q), make.leaf(dtype, (64, n_kv), k), make.leaf(dtype, (64, n_kv), v),
            make.leaf(F16, (n_kv, n_tokens), mask), 0.125,
        )  # fmt: skip
        if sinks:
            node = with_sinks(node, make.leaf(F32, (3,)))
        cases.append(Case(node, make.contents, 1e-5, atol=1e-7, peer_nmse=5e-4))
    return cases


@pytest.mark.parametrize("device", ["peer", "cpu"], indirect=True)
@pytest.mark.parametrize("n_tokens", [1, 2, len(SEEN), 25])
@pytest.mark.parametrize("dtype", [F16, F32], ids=lambda t: t.name)
def test_scores_that_are_no_numbers(device: Device, dtype: GGMLType, n_tokens: int) -> None:
    """NaN where one that is seen is NaN, and where all are -inf; also if other threads have other keys of the query."""
    cases = odd_rows(dtype, n_tokens)
    results = [run(case, ReferenceDevice())[1] for case in cases]
    assert len({str(np.isnan(row)) for result in results for row in result[0]}) == 2, "some are NaN, others are not"
    # the stock ggml goes from key to key: one of -inf before any other makes it NaN
    one_by_one = [runs for runs in SEEN if runs != (LEAST_KEY, MORE)]
    for case in odd_rows(dtype, n_tokens, one_by_one) if device.name == "peer" else cases:
        check(case, device)


@pytest.mark.parametrize("n_tokens", [1, 5, 25])
def test_a_sink_counts_where_all_scores_are_the_least(cpu_device: Device, n_tokens: int) -> None:
    (case,) = odd_rows(F16, n_tokens, [(LEAST_KEY,)] * n_tokens, sinks=True)
    check(case, cpu_device)
    _, values = run(case, cpu_device)
    assert not values.any()


@pytest.mark.parametrize("n_tokens", [1, 5, 70])
@pytest.mark.parametrize("key", [np.nan, -np.inf])
def test_odd_scores_without_a_mask(cpu_device: Device, key: float, n_tokens: int) -> None:
    make = Operands(np.random.default_rng(0))
    k = make.leaf(F16, (64, 70), np.full((70, 64), key))
    node = ops.flash_attn_ext(
        make.leaf(F32, (64, n_tokens), np.ones((n_tokens, 64))), k, make.leaf(F16, (64, 70)), None, 1.0
    )
    case = Case(node, make.contents, 0)
    check(case, cpu_device)
    _, values = run(case, cpu_device)
    assert np.isnan(values).all()


@pytest.mark.parametrize("n_tokens", [1, 5, 70])
def test_sums_of_weights_that_count_for_nothing_are_normal_numbers(cpu_device: Device, n_tokens: int) -> None:
    """A key whose score is 300 above the others', and whose values are 0: what the others give is added up on the way.
    As subnormal numbers that takes a processor a hundred times as long."""
    make = Operands(np.random.default_rng(0))
    k, v = np.zeros((70, 64)), np.full((70, 64), 2.0**-20)
    k[-1], v[-1] = 300 / 64, 0
    node = ops.flash_attn_ext(
        make.leaf(F32, (64, n_tokens), np.ones((n_tokens, 64))), make.leaf(F16, (64, 70), k), make.leaf(F32, (64, 70), v),
        None, 1.0,
    )  # fmt: skip
    _, values = run(Case(node, make.contents, 0), cpu_device)
    assert (np.abs(values) >= np.finfo(np.float32).smallest_normal).all() and (np.abs(values) < 1e-20).all()


def test_cpu_supports_what_models_need(cpu_device: Device) -> None:
    make = Operands(np.random.default_rng(0))
    q, mask = make.like("planes", F32, (64, 5, 9)), make.leaf(F16, (256, 64))
    for kv in (F16, F32):
        k = make.like("planes", kv, (64, 256, 3))
        assert cpu_device.supports_op(ops.flash_attn_ext(q, k, k, mask, 0.125)), kv
        assert cpu_device.supports_op(ops.flash_attn_ext(q, k, k, None, 0.125)), kv


def other_grouping(node: Tensor) -> None:
    """Head h takes key head h % n instead of h // ratio."""
    q, k, v = (s for s in node.src[:3] if s is not None)
    ratio = q.ne[2] // k.ne[2]

    def interleaved(t: Tensor, n: int, m: int) -> Tensor:
        made = Tensor(t.type, (t.ne[0], t.ne[1], n, m), (t.nb[0], t.nb[1], t.nb[2], t.nb[2] * n))
        made.buffer, made.data = t.buffer, t.data
        return made

    if ratio > 1 and q.ne[3] == 1 and len(node.src) == 3 and k.ne[2] == v.ne[2]:
        order = [h % k.ne[2] for h in range(q.ne[2])]
        k_data, v_data, q_data = (reference.read(t) for t in (k, v, q))
        result = np.empty((1, q.ne[1], q.ne[2], v.ne[0]))
        for h, kh in enumerate(order):
            for t in range(q.ne[1]):
                s = k_data[0, kh] @ q_data[0, h, t] * node.param_f32(0)
                result[0, t, h] = reference.attend(s, v_data[0, kh], np.zeros(k.ne[1]), node.param_f32(2), None)
        reference.write(node, result)
    else:
        reference.flash_attn_ext(node)


def without_softcap(node: Tensor) -> None:
    params = node.op_params[:8] + bytes(4) + node.op_params[12:]
    changed = Tensor(node.type, node.ne, node.nb, op=node.op, op_params=params, src=node.src)
    changed.buffer, changed.data = node.buffer, node.data
    reference.flash_attn_ext(changed)


def without_nan(node: Tensor) -> None:
    """Scores that are NaN are dropped."""
    right = reference.attend

    def attend(scores: Values, v: Values, bias: Values, softcap: float, sink: float | None) -> Values:
        return right(scores, v, np.where(np.isnan(scores), -np.inf, bias), softcap, sink)

    reference.attend = attend
    try:
        reference.flash_attn_ext(node)
    finally:
        reference.attend = right


@pytest.mark.parametrize("n_tokens", [1, 5])
def test_dropped_scores_are_noticed(n_tokens: int) -> None:
    mutant = mutant_of(Op.FLASH_ATTN_EXT, (reference.refuse, without_nan))
    with pytest.raises(AssertionError, match="NaN differs"):
        for case in odd_rows(F16, n_tokens):
            check(case, mutant)


def test_mutants_are_caught() -> None:
    for wrong in (other_grouping, without_softcap):
        assert_caught(attention_cases((F16,)), mutant_of(Op.FLASH_ATTN_EXT, (reference.refuse, wrong)))


LENGTHS = (300, 1, 0, 70, 64, 129)
"""Cells that sequences hold, of 320 each."""


def sequences(dtype: GGMLType, n_tokens: int, one_stream: bool, which: Sequence[int] = range(len(LENGTHS))) -> Case:
    """The last tokens of some of the sequences, each in a stream of its own or all of them in one, where what another
    sequence holds is hidden. Cells that nobody holds are NaN."""
    rng = np.random.default_rng(21)
    q, k, v = (rng.standard_normal((len(LENGTHS), heads, n, 64)) for heads, n in ((6, n_tokens), (2, 320), (2, 320)))
    mask = np.full((len(LENGTHS), 1, n_tokens, 320), -np.inf)
    for i, length in enumerate(LENGTHS):
        mask[i, ..., :length] = 0.0
        k[i, :, length:], v[i, :, length:] = np.nan, np.nan
    q, k, v, mask = (x[list(which)] for x in (q, k, v, mask))
    if one_stream:
        n = len(which)
        q, k, v = (x.transpose(1, 0, 2, 3).reshape(x.shape[1], -1, 64)[None] for x in (q, k, v))
        apart = np.full((n, n_tokens, n, 320), -np.inf)
        apart[range(n), :, range(n)] = mask[:, 0]
        mask = apart.reshape(1, 1, n * n_tokens, n * 320)
    make = Operands(rng)
    src = [make.leaf(t, x.shape[::-1], x) for t, x in ((F32, q), (dtype, k), (dtype, v), (F16, mask))]
    return Case(ops.flash_attn_ext(*src, 0.125), make.contents, 1e-5, atol=1e-7, peer_nmse=2e-3)


@pytest.mark.parametrize("one_stream", [False, True])
@pytest.mark.parametrize("n_tokens", [1, 2, 5, 25])
@pytest.mark.parametrize("dtype", [F16, GGMLType.Q8_0], ids=lambda t: t.name)
def test_sequences_of_different_lengths(cpu_device: Device, dtype: GGMLType, n_tokens: int, one_stream: bool) -> None:
    """They do not see each other's cells, nor those that nobody holds; with streams each has the bits that it has alone."""
    case = sequences(dtype, n_tokens, one_stream)
    check(case, cpu_device)
    _, together = run(case, cpu_device)
    together = together.reshape(len(LENGTHS), n_tokens, 6, 64)
    assert np.isfinite(together).all() and not together[2].any() and together[1].any()
    for i in range(len(LENGTHS)):
        _, alone = run(sequences(dtype, n_tokens, False, [i]), cpu_device)
        assert (
            np.allclose(together[i], alone[0], rtol=1e-4, atol=1e-5) if one_stream else (together[i] == alone[0]).all()
        )


def without_the_mask(node: Tensor) -> None:
    changed = Tensor(node.type, node.ne, node.nb, op=node.op, op_params=node.op_params, src=node.src[:3])
    changed.buffer, changed.data = node.buffer, node.data
    reference.flash_attn_ext(changed)


def test_a_sequence_that_sees_others_is_noticed() -> None:
    mutant = mutant_of(Op.FLASH_ATTN_EXT, (reference.refuse, without_the_mask))
    for one_stream in (False, True):
        with pytest.raises(AssertionError):
            check(sequences(F16, 1, one_stream), mutant)
