"""For each special part of an architecture a mutant, that the comparison with llama.cpp must catch."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from typing import Any

import pytest
from arch_files import LIMIT
from arch_mutants import Mutate, difference, each_block, on
from peer_archs import ArchPeer
from peer_programs import Programs
from programs import Newest

from pyggml import ops
from pyggml.model.layers import CausalLM
from pyggml.model.mlp import relu
from pyggml.model.rope import Rope


def long_factors(block: Any) -> None:
    block.attn.rope.rope_factors_short = block.attn.rope.rope_factors_long


def heads_reversed(block: Any) -> None:
    """Results of latent attention go through the matrix of another head."""
    apply = block.attn.attn_v_b

    def other(x: Any) -> Any:
        n = x.ne[1]
        parts = [ops.view(x, (x.ne[0], 1, x.ne[2]), x.nb[1:3], (n - 1 - i) * x.nb[1]) for i in range(n)]
        return apply(reduce(lambda a, b: ops.concat(a, b, 1), parts))

    block.attn.attn_v_b = other


class TurnsFirst(Rope):
    """Turns the first elements, whichever are to be."""

    def __call__(self, g: Any, x: Any, offset: int = 0) -> Any:
        return super().__call__(g, x)


def without_positions(modules: CausalLM) -> None:
    modules.embed = modules.token_embd  # type: ignore[method-assign]


def without_bias(modules: CausalLM) -> None:
    modules.output.bias.tensor = None
def usual_betas(block: Any) -> None:
    block.attn.rope.scaling = replace(block.attn.rope.scaling, beta_fast=32.0)


class Lacking:
    """A part that the file lacks."""

    there = False


MUTANTS: list[tuple[str, str, Mutate]] = [
    ("qwen3-dense", "no norms of queries and keys", on("attn", qk_norm=None)),
    ("qwen3-dense", "positions on neighbours", on("attn.rope", mode=0)),
    ("qwen3moe-moe", "shares as they are", on("ffn", renormalise=False)),
    ("qwen2moe-moe", "no gate of the shared expert", on("ffn", ffn_gate_inp_shexp=None)),
    ("qwen2moe-moe", "shares by their sum", on("ffn.experts", renormalise=True)),
    ("hunyuan-moe-moe", "norms before positions", on("attn", norm_last=False)),
    ("olmo2-dense", "no norm behind attention", on("", post_attention_norm=None)),
    ("exaone4-dense", "no norm behind the feed-forward network", on("", post_ffw_norm=None)),
    ("granite-moe", "another attention scale", on("attn", scale=0.1)),
    ("cohere2-dense", "a window of one less", on("attn", window=31)),
    ("cohere2-dense", "no positions", on("attn", rope=None)),
    ("dots1-moe", "no bias of probabilities", on("ffn.experts", exp_probs_b=None)),
    ("glm4-dense", "the other half is the gate", on("ffn", swapped=True)),
    ("phi3-dense", "factors of long contexts", each_block(long_factors)),
    ("starcoder2-dense", "another activation", on("ffn", activation=lambda x: x)),
    ("deepseek-moe", "shares by their sum", on("ffn.experts", renormalise=True)),
    ("deepseek2-moe", "no bias of probabilities", on("ffn.experts", exp_probs_b=None)),
    ("deepseek2-moe", "soft max of experts", on("ffn.experts", gating="softmax")),
    ("deepseek2-groups", "no groups of experts", on("ffn.experts", groups=None)),
    ("deepseek2-groups", "three groups used", on("ffn.experts", groups=(4, 3))),
    ("deepseek2-groups", "shares as large as they are", on("ffn.experts", scale=1.0)),
    ("deepseek2-yarn", "scale by length alone", on("attn", scale=192**-0.5)),
    ("deepseek2-yarn", "the same temperature everywhere", on("attn", temperature=None)),
    ("mistral4-yarn", "yarn as in deepseek2", on("attn.rope", attn_factor=1 / (1 + 0.1 * math.log(4)))),
    ("deepseek2-lite", "another head's values", each_block(heads_reversed)),
    ("deepseek2-expanded", "the first part turned", on("attn.rope", __class__=TurnsFirst)),
    ("minicpm3-dense", "residuals as they are", on("", residual=1.0)),
    ("minicpm3-plain", "factors of long contexts", each_block(long_factors)),
    ("bloom-dense", "scores that do not fall with the distance", on("attn", max_bias=0.0)),
    ("bloom-dense", "scores that fall faster", on("attn", max_bias=9.0)),
    ("mpt-dense", "queries, keys and values as they are", on("attn", clamp=0.0)),
    ("jais-dense", "the usual scale", on("attn", scale=0.088)),
    ("gpt2-dense", "no embeddings of positions", without_positions),
    ("falcon-dense", "one norm for both", on("attn_norm_2", eps=1.0)),
    ("phi2-dense", "no bias of logits", without_bias),
    ("arcee-dense", "without the square", on("ffn", activation=relu)),
    ("minicpm-dense", "residuals as they are", on("", residual=1.0)),
    ("paddleocr-moe", "positions on neighbours", on("attn.rope", mode=0)),
    ("mistral3-yarn", "yarn changes over elsewhere", each_block(usual_betas)),
    ("mistral3-yarn", "yarn without the multiplier", on("attn.rope", attn_factor=1 / (1 + 0.1 * math.log(8)))),
    ("glm4moe-moe", "no norms of queries and keys", on("attn", qk_norm=None)),
    ("glm4moe-text", "shares as large as they are", on("ffn.experts", scale=1.0)),
    ("minimax-m2-moe", "norms of each head", on("attn", qk_norm=None)),
    ("minimax-m2-moe", "no bias of probabilities", on("ffn", exp_probs_b=None)),
    ("bailingmoe-moe", "shares by their sum", on("ffn.experts", renormalise=True)),
    ("bailingmoe2-groups", "no groups of experts", on("ffn.experts", groups=None)),
    ("llama4-moe", "no norms of queries and keys", on("attn", qk_norm=None)),
    ("llama4-moe", "shares multiply results", on("ffn.experts", weight_first=False)),
    ("llama4-moe", "positions on halves", on("attn.rope", mode=2)),
    ("llama4-moe", "no frequency factors", on("attn.rope.rope_freqs.weight", tensor=None)),
    ("dbrx-clamp", "queries, keys and values as they are", on("attn", clamp=0.0)),
    ("arctic-moe", "experts read what the network reads", on("ffn_norm_exps", eps=0.5)),
    ("grok-sparse", "no soft cap of scores", on("attn", softcap=0.0)),
    ("grok-moe", "experts alone", on("ffn", dense=Lacking())),
    ("grok-moe", "no norm behind attention", on("", post_attention_norm=None)),
    ("grok-sparse", "no soft cap of logits", of_model(logit_softcap=0.0)),
    ("grok-sparse", "no norm behind the feed-forward network", on("", post_ffw_norm=None)),
    ("grok-sparse", "yarn changes over elsewhere", each_block(usual_betas)),
    ("grovemoe-groups", "groups of three", on("ffn.shared", each=3)),
    ("grovemoe-groups", "as much of what groups share", on("ffn", scale=1.0)),
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
    ("gemma3-dense", "windows in no layer", on("attn", window=None)),
]
"""(file, what is wrong, how)"""


@pytest.fixture(scope="module")
def peer(newest: Newest) -> ArchPeer:
    return ArchPeer(Programs(newest.bin, newest.source))


@pytest.mark.parametrize(("name", "wrong", "mutate"), MUTANTS, ids=[f"{name}: {wrong}" for name, wrong, _ in MUTANTS])
def test_is_caught(peer: ArchPeer, name: str, wrong: str, mutate: Mutate) -> None:
    assert not difference(peer, name, mutate) < 2 * LIMIT, wrong
