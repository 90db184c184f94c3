"""Architectures with windows: for each special part a mutant, that the comparison with llama.cpp must catch."""

from typing import Any

import pytest
from arch_files import LIMIT
from arch_mutants import Mutate, difference, each_block, of_model, on
from peer_archs import ArchPeer
from peer_programs import Programs
from programs import Newest

from pyggml import ops
from pyggml.model.mlp import GatedMLP
from pyggml.model.per_layer import slice_of


def none(g: Any, x: Any) -> Any:
    return ops.scale(x, 0.0)


def one_version(modules: Any) -> None:
    modules.altup_unembd_proj.merge = lambda x: slice_of(x, 0)


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
]
"""(file, what is wrong, how)"""


@pytest.fixture(scope="module")
def peer(newest: Newest) -> ArchPeer:
    return ArchPeer(Programs(newest.bin, newest.source))


@pytest.mark.parametrize(("name", "wrong", "mutate"), MUTANTS, ids=[f"{name}: {wrong}" for name, wrong, _ in MUTANTS])
def test_is_caught(peer: ArchPeer, name: str, wrong: str, mutate: Mutate) -> None:
    assert not difference(peer, name, mutate) < 2 * LIMIT, wrong
