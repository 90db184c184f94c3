"""For each special part of an architecture a mutant, that the comparison with llama.cpp must catch."""

from typing import Any

import pytest
from arch_files import LIMIT, LIMITS
from arch_mutants import Mutate, difference, each_block, of_model, on
from peer_archs import ArchPeer

from pyggml.model.layers import CausalLM
from pyggml.model.mlp import relu


def long_factors(block: Any) -> None:
    block.attn.rope.rope_factors_short = block.attn.rope.rope_factors_long


def without_positions(modules: CausalLM) -> None:
    modules.embed = modules.token_embd  # type: ignore[method-assign]


def without_bias(modules: CausalLM) -> None:
    modules.output.bias.tensor = None


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
    ("nanbeige-rounds", "no norm between rounds", of_model(norm_between=False)),
    ("hrm_text-dense", "once through the lower stack", of_model(lower=1)),
]
"""(file, what is wrong, how)"""


@pytest.mark.parametrize(("name", "wrong", "mutate"), MUTANTS, ids=[f"{name}: {wrong}" for name, wrong, _ in MUTANTS])
def test_is_caught(arch_peer: ArchPeer, name: str, wrong: str, mutate: Mutate) -> None:
    assert not difference(arch_peer, name, mutate) < 2 * LIMITS.get(name, LIMIT), wrong
