"""A context: micro-batches, the cache, going back, and that the same graph is used again from token to token."""

from itertools import pairwise

import numpy as np
import pytest
from fake_devices import FakeDevice
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import N_VOCAB, write_llama

from pyggml import jit
from pyggml.dtypes import GGMLType
from pyggml.errors import ComputeError, ContextError, UnsupportedError
from pyggml.memory.kv import KVCache
from pyggml.memory.kv_tensors import KVLayer
from pyggml.model.model import Model
from pyggml.runtime.batch import Batch, split
from pyggml.runtime.context import Context

TOKENS = [int(t) for t in np.random.default_rng(0).integers(0, N_VOCAB, 23)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = write_llama(tmp_path_factory.mktemp("model") / "tiny.gguf", head_k=24, head_v=8)
    made = Model.load(path, cpu=FakeDevice("CPU"))
    yield made
    made.close()


@pytest.fixture
def context(model):
    made = Context(model, n_ctx=300, n_ubatch=8)
    yield made
    made.close()


@pytest.fixture(scope="module")
def expected(model):
    """Logits after each of TOKENS, computed at once."""
    context = Context(model, n_ctx=256)
    out = context.decode(TOKENS, logits="all")
    context.close()
    assert np.isfinite(out).all() and out.shape == (len(TOKENS), N_VOCAB)
    return out


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, len(TOKENS)), max_size=5), st.integers(1, 9), st.booleans())
def test_micro_batches_give_the_logits_of_one_batch(model, expected, cuts, n_ubatch, flash_attn):
    context = Context(model, n_ctx=256, n_ubatch=n_ubatch, flash_attn=flash_attn)
    edges = sorted({0, *cuts, len(TOKENS)})
    for start, end in pairwise(edges):
        last = context.decode(TOKENS[start:end])
        np.testing.assert_allclose(last[0], expected[end - 1], rtol=1e-3, atol=2e-3)
    assert context.n_past == len(TOKENS)
    context.close()


def test_micro_batches_without_outputs_fill_the_cache(context, expected):
    none = context.decode(TOKENS[:20], logits="none")
    assert none.shape == (0, N_VOCAB) and context.n_past == 20
    np.testing.assert_allclose(context.decode(TOKENS[20:], logits="all"), expected[20:], rtol=1e-5, atol=1e-5)


def test_a_model_of_one_layer_has_micro_batches_without_outputs_too(tmp_path):
    model = Model.load(write_llama(tmp_path / "one.gguf", n_layer=1), cpu=FakeDevice("CPU"))
    context, whole = Context(model, n_ctx=256, n_ubatch=4), Context(model, n_ctx=256)
    np.testing.assert_allclose(context.decode(TOKENS), whole.decode(TOKENS), rtol=1e-5, atol=1e-5)


def test_the_graph_is_the_same_from_token_to_token_until_the_padded_length_changes(model):
    context = Context(model, n_ctx=1024)
    device = model.cpu
    context.decode(TOKENS)
    context.decode([1])
    first = context.schedule_for(1, 256, 1)
    plans = device.plans
    while context.n_past < 256:
        context.decode([2])
    assert device.plans == plans and context.schedule_for(1, 256, 1)[1] is first[1]
    context.decode([2])
    assert device.plans == plans + 1, "257 tokens: the graph sees 512 cells"
    context.decode([2])
    context.decode([5, 6], n_past=100)
    context.decode([2])
    assert device.plans == plans + 2, "the graphs of 1 token at 256 and 512 cells were kept"
    context.close()


def test_buffers_do_not_move_while_decoding(model):
    context = Context(model, n_ctx=600, n_ubatch=64)
    generation, sizes = context.scheduler.generation, context.scheduler.sizes
    for n in (64, 64, 300, 1, 7, 64, 99):
        context.decode([3] * n)
    assert (context.scheduler.generation, context.scheduler.sizes) == (generation, sizes)
    context.close()


def test_truncate_goes_back(context, expected):
    context.decode(TOKENS)
    context.decode([7, 7, 7], n_past=10)
    assert context.n_past == 13
    out = context.decode(TOKENS[10:], n_past=10, logits="all")
    np.testing.assert_allclose(out, expected[10:], rtol=1e-5, atol=1e-5)
    context.truncate(5)
    assert context.n_past == 5
    context.clear()
    np.testing.assert_allclose(context.decode(TOKENS), expected[-1:], rtol=1e-5, atol=1e-5)
    with pytest.raises(ContextError, match="cannot keep 24 tokens, 23 are decoded"):
        context.truncate(24)
    with pytest.raises(ContextError, match="cannot keep -1 tokens"):
        context.decode([1], n_past=-1)


def test_more_tokens_than_the_context_holds_is_an_error_with_both_numbers(context):
    with pytest.raises(ContextError, match="301 tokens after 0 do not fit into a context of 300"):
        context.decode([1] * 301)
    assert context.n_past == 0
    context.decode([1] * 300)
    with pytest.raises(ContextError, match="1 tokens after 300 do not fit into a context of 300"):
        context.decode([1])


def test_bad_tokens_and_bad_sizes_are_refused(model, context):
    with pytest.raises(ComputeError, match=f"token {N_VOCAB} is outside the vocabulary of {N_VOCAB}"):
        context.decode([0, N_VOCAB])
    with pytest.raises(ComputeError, match="token -1 is outside"):
        context.decode([-1])
    with pytest.raises(ContextError, match="no tokens"):
        context.decode([])
    with pytest.raises(ContextError, match="n_ubatch -1"):
        Context(model, n_ctx=256, n_ubatch=-1)
    assert Context(model, n_ctx=256, n_batch=7, n_ubatch=0).n_ubatch == 7, "llama_context's constructor"
    with pytest.raises(UnsupportedError, match="a cache of K in Q6_K is unknown; known are F32, F16"):
        Context(model, n_ctx=256, type_k=GGMLType.Q6_K)


@pytest.mark.parametrize("flash_attn", [True, False])
@pytest.mark.parametrize("type_k", [GGMLType.F16, GGMLType.F32])
@pytest.mark.parametrize("type_v", [GGMLType.F16, GGMLType.F32])
def test_cache_types(model, expected, type_k, type_v, flash_attn):
    context = Context(model, n_ctx=256, n_ubatch=8, type_k=type_k, type_v=type_v, flash_attn=flash_attn)
    assert [t.type for t in (context.cache.k[0], context.cache.v[1])] == [type_k, type_v]
    np.testing.assert_allclose(context.decode(TOKENS, logits="all"), expected, rtol=1e-2, atol=1e-2)
    context.close()


def test_the_context_is_by_default_as_long_as_the_training(model):
    context = Context(model)
    assert context.n_ctx == 1024 and context.cache.n_cells == 1024
    context.close()
    context.close()


def test_mask_and_rows():
    device = FakeDevice("CPU")

    def made(transposed_v):
        cache = KVCache([KVLayer(0, 4, 2, 3)], 300, transposed_v=transposed_v)
        cache.allocate([device])
        cache.commit(cache.place(one(Batch.of([1] * 5, 0))))
        return cache, cache.place(one(Batch.of([1, 1], 5)))

    cache, placed = made(True)
    assert (cache.n_cells, cache.n_kv(0), cache.n_kv(256), cache.n_kv(257)) == (512, 256, 256, 512)
    mask = cache.mask(placed)[:, :8]
    assert mask.dtype == np.float32 and (mask == [[0] * 6 + [-np.inf] * 2, [0] * 7 + [-np.inf]]).all()
    assert cache.v_rows(placed, 6)[:3].tolist() == [5, 5 + 512, 5 + 1024] and cache.v_rows(placed, 6).size == 12
    plain, placed = made(False)
    assert plain.mask(placed).dtype == np.float16 and plain.rows(placed).tolist() == [5, 6]
    assert plain.n_bytes == 512 * 3 * (4 + 2) * 2


def one(batch):
    """The only micro-batch of a batch of one sequence."""
    ((ub, _),) = split(batch, 512, 1, 1)
    return ub


@pytest.mark.parametrize(("n_tokens", "n_ubatch"), [(1, 32), (5, 32), (40, 32), (300, 512)])
def test_kernels_of_the_prompt_and_of_the_text_are_prepared_together(tmp_path, monkeypatch, n_tokens, n_ubatch):
    """Once `prepare` is done, neither the prompt nor the token after it needs another kernel."""
    model = Model.load(write_llama(tmp_path / "tiny.gguf"))
    context = Context(model, n_ctx=512, n_ubatch=n_ubatch)
    monkeypatch.setattr(jit, "_addresses", {})
    wanted = jit.prepare

    def seen(specs):
        asked.extend(spec for spec in specs if spec not in jit._addresses)
        return wanted(specs)

    asked: list[jit.Spec] = []
    monkeypatch.setattr(jit, "prepare", seen)
    jit.wait(context.prepare(n_tokens))
    assert len(asked) > 5
    asked.clear()
    context.decode([1] * n_tokens)
    context.decode([1])
    assert asked == []
    context.close()
    model.close()
