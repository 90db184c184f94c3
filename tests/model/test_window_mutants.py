"""Architectures with windows: for each special part a mutant, that the comparison with llama.cpp must catch."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from arch_files import LIMIT
from arch_mutants import Mutate, difference, each_block, of_model, on
from arch_variants import all_files
from peer_archs import ArchPeer, Script, nmse

from pyggml import ops
from pyggml.model.experts import Experts, ExpertsAndShared
from pyggml.model.gated_attention import AttentionAndGate, sigmoid, softplus
from pyggml.model.mlp import GatedMLP
from pyggml.model.model import Model
from pyggml.model.per_layer import slice_of
from pyggml.runtime.context import Context


def none(g: Any, x: Any) -> Any:
    return ops.scale(x, 0.0)


def ones(x: Any) -> Any:
    return ops.scale(x, 0.0, 1.0)


def plain(g: Any, x: Any) -> Any:
    return ops.rms_norm(x, 1e-5)


def embeddings_as_they_are(modules: Any) -> None:
    modules.embed = modules.token_embd


def routed_late(block: Any) -> None:
    experts = block.ffn
    block.ffn = lambda g, x, logits: Experts.__call__(experts, g, x)
    block.ffn.ffn_gate_inp = experts.ffn_gate_inp


def summed(block: Any) -> None:
    if isinstance(block.ffn, ExpertsAndShared):
        block.ffn.__class__ = ExpertsAndShared


def unlimited(block: Any) -> None:
    if isinstance(block.ffn, GatedMLP):
        block.ffn.limit = 0.0


def usual_yarn(block: Any) -> None:
    block.attn.rope.scaling = replace(block.attn.rope.scaling, beta_fast=32.0, beta_slow=1.0)


def one_version(modules: Any) -> None:
    modules.altup_unembd_proj.merge = lambda g, x: slice_of(x, 0)


def first_keys(block: Any) -> None:
    """Layers with windows that read an earlier one's keys read those of the very first."""
    if block.attn.shares is not None and block.attn.window:
        block.attn.shares = 0


MUTANTS: list[tuple[str, str, Mutate]] = [
    ("gpt-oss-moe", "no sinks", on("attn", attn_sinks=None)),
    ("gpt-oss-moe", "a window of one less", on("attn", window=31)),
    ("gpt-oss-moe", "no biases of experts", on("ffn.ffn_up_exps.bias", tensor=None)),
    ("gpt-oss-moe", "no bias of the router", on("ffn.ffn_gate_inp.bias", tensor=None)),
    ("gpt-oss-moe", "shares of all experts", on("ffn", gating="softmax", renormalise=False)),
    ("gpt-oss-yarn", "no limit of the gate", on("ffn", limit=1e9)),
    ("gpt-oss-yarn", "positions as they are", on("attn.rope", ext_factor=0.0)),
    ("gpt-oss-fused", "no biases of queries", on("attn.attn_q.bias", tensor=None)),
    ("gpt-oss-moe", "a sharper gate", on("ffn", alpha=1.8)),
    ("gemma-dense", "embeddings as they are", of_model(embed_scale=1.0)),
    ("gemma-dense", "another gate", on("ffn", kind=ops.GluOp.SWIGLU)),
    ("gemma2-caps", "no cap of scores", on("attn", softcap=0.0)),
    ("gemma2-caps", "no cap of logits", of_model(logit_softcap=0.0)),
    ("gemma2-dense", "a window of one more", on("attn", window=33)),
    ("gemma2-dense", "no norm behind attention", on("", post_attention_norm=None)),
    ("gemma3-dense", "no norms of queries and keys", on("attn", qk_norm=None)),
    ("gemma3-bases", "scaled positions in windows", on("attn.rope", freq_scale=0.125)),
    ("gemma3-bases", "one base for all", on("attn.rope", freq_base=1e6)),
    ("gemma4-small", "values as they are", on("attn", v_norm=None)),
    ("gemma4-small", "no embeddings of layers", on("", per_layer=None)),
    ("gemma4-small", "results as they are", on("layer_output_scale.weight", tensor=None)),
    ("gemma4-small", "all of a head turned", on("attn.rope", rope_freqs=None)),
    ("gemma4-small", "windows in no layer", on("attn", window=None)),
    ("gemma4-small", "the first layer's keys for all", each_block(first_keys)),
    ("gemma4-experts", "no dense network", on("ffn", post_ffw_norm_1=none)),
    ("gemma4-experts", "a router of the plain sum", on("ffn.routed", factor=1.0)),
    ("gemma4-experts", "no scales of experts", on("ffn.experts.ffn_down_exps.scale", tensor=None)),
    ("gemma3n-small", "no product of low rank", on("", laurel=none)),
    ("gemma3n-small", "all gates", on("ffn", __class__=GatedMLP)),
    ("gemma3n-small", "versions as predicted", on("altup", correct=lambda g, predictions, made: predictions)),
    ("gemma3n-small", "versions of their own alone", on("altup", predict=lambda g, x: x)),
    ("gemma3n-small", "no embeddings of layers", on("per_layer", post_norm=none)),
    ("gemma3n-small", "the first layer's keys for all", each_block(first_keys)),
    ("gemma3n-small", "values as they are", on("attn", v_norm=None)),
    ("gemma3n-small", "one version in the end", one_version),
    ("gemma3-dense", "windows in no layer", on("attn", window=None)),
    ("afmoe-moe", "no gate", on("attn", gate=ones)),
    ("afmoe-moe", "a window of one less", on("attn", window=31)),
    ("afmoe-moe", "positions nowhere", on("attn", rope=None)),
    ("cohere2moe-moe", "the sum of experts", each_block(summed)),
    ("cohere2moe-moe", "a window of one more", on("attn", window=33)),
    ("cohere2moe-bases", "the base of windows", on("attn.rope", freq_base=500.0)),
    ("granite_swa-dense", "no sinks", on("attn", attn_sinks=None)),
    ("granite_swa-dense", "a window of one less", on("attn", window=31)),
    ("granite_swa-experts", "no shared expert", on("ffn", shared=none)),
    ("granite_swa-experts", "another attention scale", on("attn", scale=0.12)),
    ("mimo2-moe", "no sinks", on("attn", attn_sinks=None)),
    ("mimo2-moe", "no bias of probabilities", on("ffn", exp_probs_b=None)),
    ("mimo2-values", "values as they are", on("attn", factor=1.0)),
    ("mimo2-values", "scaled positions in windows", on("attn.rope", freq_scale=0.25)),
    ("spark2_5-dense", "no gate", on("attn", gate=ones)),
    ("spark2_5-dense", "another activation", on("ffn", kind=ops.GluOp.SWIGLU)),
    ("muse-glimmer-dense", "embeddings as they are", embeddings_as_they_are),
    ("muse-glimmer-dense", "no gate", on("attn", gate=ones)),
    ("muse-glimmer-dense", "the usual epsilon behind", on("post_ffw_norm", eps=1e-2)),
    ("muse-glimmer-caps", "logits as large as they are", of_model(logit_scale=1.0)),
    ("muse-glimmer-caps", "no cap of logits", of_model(logit_softcap=0.0)),
    ("mellum-yarn", "scaled positions in windows", on("attn.rope", freq_scale=0.25)),
    ("mellum-yarn", "yarn nowhere", on("attn.rope", ext_factor=0.0)),
    ("smallthinker-moe", "a router of what attention gives", each_block(routed_late)),
    ("smallthinker-moe", "another activation", on("ffn", kind=ops.GluOp.SWIGLU)),
    ("laguna-moe", "sigmoids as gates", on("attn", gate=sigmoid)),
    ("laguna-elements", "the whole head turned in windows", on("attn.rope", n_rot=80)),
    ("laguna-elements", "shares as large as they are", on("ffn.experts", scale=1.0)),
    ("plamo3-dense", "no norm behind attention", on("", post_attention_norm=None)),
    ("plamo3-bases", "scaled positions in windows", on("attn.rope", freq_scale=0.125)),
    ("maple-limits", "no limits", on("ffn", limit=1e9)),
    ("maple-moe", "a window of one less", on("attn", window=31)),
    ("exaone-moe-moe", "positions nowhere", on("attn", rope=None)),
    ("exaone-moe-bases", "the base of windows", on("attn.rope", freq_base=500.0)),
    ("exaone-moe-bases", "shares as large as they are", on("ffn.experts", scale=1.0)),
    ("hy_v3-moe", "no bias of probabilities", on("ffn.experts", exp_probs_b=None)),
    ("hy_v3-moe", "no shared expert", on("ffn", shared=none)),
    ("talkie-dense", "embeddings added once", on("", layer_output_scale=lambda g, x: x)),
    ("talkie-dense", "all heads alike", on("attn", attn_q_norm=plain)),
    ("k2-horizon-dense", "norms of rows", on("attn_norm", groups=1)),
    ("k2-horizon-dense", "gates of base e", on("attn", gate=softplus)),
    ("k2-horizon-values", "values of keys", on("attn", __class__=AttentionAndGate)),
    ("k2-horizon-values", "values chosen by their shares", on("attn.values", chosen=lambda x: x)),
    ("k2-horizon-values", "yarn's usual numbers", each_block(usual_yarn)),
    ("step35-small", "the whole head turned", on("attn.rope", n_rot=32)),
    ("step35-small", "no gate", on("attn", gate=ones)),
    ("step35-small", "no limits of experts", on("ffn.experts", limit=0.0)),
    ("step35-small", "no limits of dense networks", each_block(unlimited)),
    ("step35-small", "no limits of the shared expert", on("ffn.shared", limit=0.0)),
    ("olmo2-yarn", "the base of windows", on("attn.rope", freq_base=500.0)),
    ("olmo2-yarn", "scaled positions in windows", on("attn.rope", freq_scale=0.25)),
]
"""(file, what is wrong, how)"""


def test_a_window_that_the_architecture_says(arch_peer: ArchPeer) -> None:
    """smallthinker's has 4096 tokens, whatever the file says."""
    path, n = all_files(arch_peer)["smallthinker-moe"], 4380
    tokens = [int(token) for token in np.random.default_rng(1).integers(0, 128, n + 20)]
    script = Script(n_ctx=4608, n_ubatch=512).decode(tokens[:n], outputs=False).decode(tokens[n:], n)
    theirs = arch_peer.rows(path, script)
    for window in (4096, 4095):
        model = Model.load(path)
        if window != 4096:
            on("attn", window=window)(model.modules)
        context = Context(model, n_ctx=4608, n_ubatch=512, flash_attn=False)
        context.decode(tokens[:n])
        assert (nmse(theirs, context.decode(tokens[n:], logits="all")) < LIMIT) == (window == 4096)
        context.close(), model.close()


@pytest.mark.parametrize(("name", "wrong", "mutate"), MUTANTS, ids=[f"{name}: {wrong}" for name, wrong, _ in MUTANTS])
def test_is_caught(arch_peer: ArchPeer, name: str, wrong: str, mutate: Mutate) -> None:
    assert not difference(arch_peer, name, mutate) < 2 * LIMIT, wrong
