"""Logits of llama models held against llama.cpp's, computed by the reference backend."""

import gguf
import numpy as np
import pytest
from tiny_model import N_VOCAB, write_llama

from pyggml.backend.reference import ReferenceDevice
from pyggml.dtypes import GGMLType
from pyggml.model.context import Context
from pyggml.model.model import Model

TOKENS = [int(t) for t in np.random.default_rng(3).integers(0, N_VOCAB, 40)]

MODELS = {
    "gqa, tied": {},
    "one layer, all heads": {"n_layer": 1, "n_head_kv": 4},
    "biases, untied": {"biases": True, "tied": False},
    "head sizes of the file": {"head_k": 24, "head_v": 24},
    "rope base": {"floats": {"llama.rope.freq_base": 500000.0}},
    "linear rope": {"strings": {"llama.rope.scaling.type": "linear"}, "floats": {"llama.rope.scaling.factor": 4.0}},
    "older linear rope": {"floats": {"llama.rope.scale_linear": 2.0}},
    "no rope scaling": {"strings": {"llama.rope.scaling.type": "none"}, "floats": {"llama.rope.scaling.factor": 4.0}},
    "yarn rope": {
        "strings": {"llama.rope.scaling.type": "yarn"},
        "floats": {"llama.rope.scaling.factor": 8.0},
        "ints": {"llama.rope.scaling.original_context_length": 16},
    },
    "rope factors": {"rope_freqs": True},
    "F16 weights": {"quant": gguf.GGMLQuantizationType.F16},
}


def run(path, tokens, **options):
    model = Model.load(path, cpu=ReferenceDevice())
    context = Context(model, n_ctx=512, n_ubatch=16, **options)
    out = context.decode(tokens, logits="all")
    context.close()
    model.close()
    return out


def kl(theirs, ours):
    """Mean over tokens of KL(theirs || ours), in nats."""
    a, b = (x.astype(np.float64) - np.logaddexp.reduce(x.astype(np.float64), -1, keepdims=True) for x in (theirs, ours))
    return float((np.exp(a) * (a - b)).sum(-1).mean())


@pytest.mark.parametrize("flash_attn", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_small_models(name, flash_attn, tmp_path, peer):
    path = write_llama(tmp_path / "tiny.gguf", **MODELS[name])
    theirs = peer.logits(path, TOKENS, flash_attn=flash_attn)
    ours = run(path, TOKENS, flash_attn=flash_attn)
    np.testing.assert_allclose(ours, theirs, atol=5e-3 * np.abs(theirs).max())
    assert kl(theirs, ours) < 1e-5


def test_the_comparison_notices_a_wrong_rope(tmp_path, peer):
    """A wrong twin: base 20000 instead of 10000 in our copy of the file."""
    theirs = peer.logits(write_llama(tmp_path / "right.gguf"), TOKENS)
    ours = run(write_llama(tmp_path / "wrong.gguf", floats={"llama.rope.freq_base": 20000.0}), TOKENS)
    assert kl(theirs, ours) > 1e-4


@pytest.mark.parametrize("flash_attn", [True, False])
def test_f32_cache(flash_attn, tmp_path, peer):
    types = {"type_k": GGMLType.F32, "type_v": GGMLType.F32, "flash_attn": flash_attn}
    path = write_llama(tmp_path / "tiny.gguf")
    theirs = peer.logits(path, TOKENS, **types)
    np.testing.assert_allclose(run(path, TOKENS, **types), theirs, atol=5e-3 * np.abs(theirs).max())


def test_smollm2(smollm2, peer):
    """Q4_1: llama.cpp rounds activations to 8 bits, the reference does not; the difference is that rounding."""
    tokens = [19556, 28, 957, 1461, 314]
    theirs, ours = peer.logits(smollm2, tokens, flash_attn=True), run(smollm2, tokens)
    assert kl(theirs, ours) < 0.02 and (theirs.argmax(1) == ours.argmax(1)).all()


def test_smollm2_in_f16(smollm2, peer):
    path = peer.quantize_model(smollm2, None, "F16")
    tokens = [19556, 28, 957]
    theirs, ours = peer.logits(path, tokens, flash_attn=True), run(path, tokens)
    assert kl(theirs, ours) < 1e-4
