"""Logits of llama models held against llama.cpp's, computed by the reference backend."""

import gguf
import numpy as np
import pytest
from compare import kl_each, mean_kl
from tiny_logits import TOKENS, run
from tiny_model import write_llama

from pyggml.backend.reference import ReferenceDevice
from pyggml.dtypes import GGMLType
from pyggml.errors import ModelError
from pyggml.model.model import Model
from pyggml.model.rope_options import RopeOptions
from pyggml.runtime.context import Context

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
    "magnitude": {"floats": {"llama.rope.scaling.attn_factor": 1.3}},
    "yarn rope, and what other architectures read": {
        "strings": {"llama.rope.scaling.type": "yarn"},
        "floats": {"llama.rope.scaling.factor": 0.5, "llama.rope.scaling.yarn_beta_fast": 2.0},
        "ints": {"llama.rope.scaling.original_context_length": 64},
    },
    "longrope, short": {
        "long_factors": True,
        "strings": {"llama.rope.scaling.type": "longrope"},
        "floats": {"llama.rope.scaling.attn_factor": 1.2},
        "ints": {"llama.rope.scaling.original_context_length": 512},
    },
    "longrope, long": {
        "long_factors": True,
        "strings": {"llama.rope.scaling.type": "longrope"},
        "ints": {"llama.rope.scaling.original_context_length": 511},
    },
    "F16 weights": {"quant": gguf.GGMLQuantizationType.F16},
    "8 experts, 2 used": {"n_expert": 8},
    "3 experts, all used": {"n_expert": 3, "n_expert_used": 3},
    "experts, 1 used, F16": {"n_expert": 4, "n_expert_used": 1, "quant": gguf.GGMLQuantizationType.F16},
    "experts without gates": {"n_expert": 4, "leave_out": tuple(f"blk.{i}.ffn_gate_exps.weight" for i in (0, 1))},
}


@pytest.mark.parametrize("flash_attn", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_small_models(name, flash_attn, tmp_path, peer):
    path = write_llama(tmp_path / "tiny.gguf", **MODELS[name])
    theirs = peer.logits(path, TOKENS, flash_attn=flash_attn)
    ours = run(path, TOKENS, flash_attn=flash_attn)
    np.testing.assert_allclose(ours, theirs, atol=5e-3 * np.abs(theirs).max())
    assert mean_kl(theirs, ours) < 1e-5


@pytest.mark.parametrize("quant", ["F32", "F16", "Q4_0", "Q8_0"])
def test_experts_on_the_cpu(quant, tmp_path, peer):
    """Row by row for single tokens, in tiles for many; and with another number of experts than the file wants. Both
    engines round activations; ours is not much further from what no rounding gives than theirs. (The median: where two
    experts are nearly equal, rounding chooses.)"""
    changes = {"llama.expert_used_count": 3}
    path = write_llama(tmp_path / "experts.gguf", n_expert=8, quant=gguf.GGMLQuantizationType[quant])
    other = write_llama(tmp_path / "three.gguf", n_expert=8, n_expert_used=3, quant=gguf.GGMLQuantizationType[quant])
    for file, metadata in ((path, None), (other, None), (path, changes)):
        theirs = peer.logits(other if metadata else file, TOKENS, flash_attn=True)
        law = run(other if metadata else file, TOKENS)
        model = Model.load(file, metadata=metadata)
        for n_ubatch in (1, 7, 40):
            context = Context(model, n_ctx=512, n_ubatch=n_ubatch)
            ours = context.decode(TOKENS, logits="all")
            context.close()
            ours_off, theirs_off = (float(np.median(kl_each(law, x))) for x in (ours, theirs))
            assert ours_off < 1.5 * theirs_off + 1e-5, (file.name, metadata, n_ubatch)
        model.close()


def test_the_comparison_notices_another_number_of_experts(tmp_path, peer):
    path = write_llama(tmp_path / "experts.gguf", n_expert=8)
    model = Model.load(path, cpu=ReferenceDevice(), metadata={"llama.expert_used_count": 3})
    context = Context(model, n_ctx=512)
    assert mean_kl(peer.logits(path, TOKENS), context.decode(TOKENS, logits="all")) > 1e-3
    context.close()
    model.close()


def test_the_comparison_notices_a_wrong_rope(tmp_path, peer):
    """A mutant: base 20000 instead of 10000 in our copy of the file."""
    theirs = peer.logits(write_llama(tmp_path / "right.gguf"), TOKENS)
    ours = run(write_llama(tmp_path / "wrong.gguf", floats={"llama.rope.freq_base": 20000.0}), TOKENS)
    assert mean_kl(theirs, ours) > 1e-4


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
    assert mean_kl(theirs, ours) < 0.02 and (theirs.argmax(1) == ours.argmax(1)).all()


def test_smollm2_in_f16(smollm2, peer):
    path = peer.quantize_model(smollm2, None, "F16")
    tokens = [19556, 28, 957]
    theirs, ours = peer.logits(path, tokens, flash_attn=True), run(path, tokens)
    assert mean_kl(theirs, ours) < 1e-4


ROPES = [
    ({}, RopeOptions(freq_base=30000.0), {"rope_freq_base": 30000.0}),
    ({}, RopeOptions(freq_scale=0.25), {"rope_freq_scale": 0.25}),
    ({}, RopeOptions("none", freq_scale=0.25), {"rope_scaling_type": 0, "rope_freq_scale": 0.25}),
    ({}, RopeOptions("yarn", freq_scale=0.125, n_ctx_orig=16),
     {"rope_scaling_type": 2, "rope_freq_scale": 0.125, "yarn_orig_ctx": 16}),
    ({}, RopeOptions("yarn", freq_scale=0.125, n_ctx_orig=16, ext_factor=0.5, beta_fast=16.0, beta_slow=2.0),
     {"rope_scaling_type": 2, "rope_freq_scale": 0.125, "yarn_orig_ctx": 16, "yarn_ext_factor": 0.5,
      "yarn_beta_fast": 16.0, "yarn_beta_slow": 2.0}),
    ({}, RopeOptions(attn_factor=1.5), {"yarn_attn_factor": 1.5}),
    ({}, RopeOptions("yarn", freq_scale=2.0), {"rope_scaling_type": 2, "rope_freq_scale": 2.0}),
    (MODELS["yarn rope"], RopeOptions("linear"), {"rope_scaling_type": 1}),
    (MODELS["yarn rope"], RopeOptions(ext_factor=0.0), {"yarn_ext_factor": 0.0}),
    (MODELS["linear rope"], RopeOptions("none"), {"rope_scaling_type": 0}),
    (MODELS["no rope scaling"], RopeOptions("linear"), {"rope_scaling_type": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("files", "options", "fields"), ROPES, ids=str)
def test_rope_as_the_user_wants_it(files, options, fields, tmp_path, peer):
    path = write_llama(tmp_path / "tiny.gguf", **files)
    theirs = peer.steps(path, [("open", "a", fields), ("decode", "a", TOKENS)])
    model = Model.load(path, cpu=ReferenceDevice(), rope=options)
    context = Context(model, n_ctx=512, flash_attn=False)
    ours = context.decode(TOKENS)
    context.close(), model.close()
    np.testing.assert_allclose(ours, theirs, atol=5e-3 * np.abs(theirs).max())
    assert mean_kl(theirs, ours) < 1e-5
    assert mean_kl(theirs, run(path, TOKENS)[-1:]) > 1e-5 or (options.scaling == "none" and not files)  # it matters


@pytest.mark.parametrize("wrong", [{"freq_scale": -1.0}, {"freq_base": float("inf")}, {"ext_factor": float("nan")}])
def test_rope_that_cannot_be(wrong):
    with pytest.raises(ModelError, match="must be a finite number"):
        RopeOptions(**wrong)
