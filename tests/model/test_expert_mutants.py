"""For each special part of latent attention and of routed experts a mutant, that the comparison with llama.cpp must catch."""

import math
from dataclasses import replace
from functools import reduce
from typing import Any

import pytest
from arch_files import LIMIT
from arch_mutants import Mutate, difference, each_block, of_model, on
from peer_archs import ArchPeer

from pyggml import ops
from pyggml.model.latent_attention import LatentAttention
from pyggml.model.rope import Rope


def long_factors(block: Any) -> None:
    block.attn.rope.rope_factors_short = block.attn.rope.rope_factors_long


def heads_reversed(block: Any) -> None:
    """Results of latent attention go through the matrix of another head."""
    apply = block.attn.attn_v_b

    def other(g: Any, x: Any) -> Any:
        n = x.ne[1]
        parts = [ops.view(x, (x.ne[0], 1, x.ne[2]), x.nb[1:3], (n - 1 - i) * x.nb[1]) for i in range(n)]
        return apply(g, reduce(lambda a, b: ops.concat(a, b, 1), parts))

    block.attn.attn_v_b = other


class TurnsFirst(Rope):
    """Turns the first elements, whichever are to be."""

    def __call__(self, g: Any, x: Any, offset: int = 0) -> Any:
        return super().__call__(g, x)


def usual_betas(block: Any) -> None:
    block.attn.rope.scaling = replace(block.attn.rope.scaling, beta_fast=32.0)


def second_reads_all(modules: Any) -> None:
    modules.blk[1].attn.__class__ = LatentAttention


def windows_of_one_less(modules: Any) -> None:
    for block in modules.blk:
        block.attn.window = block.attn.window and block.attn.window - 1


class Lacking:
    """A part that the file lacks."""

    there = False


MUTANTS: list[tuple[str, str, Mutate]] = [
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
    ("deepseek32-sparse", "one token more is read", on("attn.indexer", top_k=12)),
    ("deepseek32-sparse", "the indexer's positions on neighbours", on("attn.indexer.rope", mode=0)),
    ("deepseek32-sparse", "all of a head turned", on("attn.indexer.rope", n_rot=128)),
    ("glm-dsa-sparse", "the indexer's positions on halves", on("attn.indexer.rope", mode=2)),
    ("glm-dsa-sparse", "the second layer reads all", second_reads_all),
    ("dots3note-sparse", "a window of one less", windows_of_one_less),
    ("dots3note-sparse", "no gate", on("attn", attn_gate=None)),
    ("dots3note-sparse", "no norm of the keys' shared part", on("attn", attn_k_norm=None)),
    ("dots3note-sparse", "one token more is read", on("attn.indexer", top_k=12)),
    ("exaone-moe-groups", "no groups of experts", on("ffn.experts", groups=None)),
    ("hy_v4-sparse", "no sinks", on("attn", attn_sinks=None)),
    ("hy_v4-sparse", "no gate", on("attn", attn_gate=None)),
    ("hy_v4-sparse", "the indexer's first elements turned", on("attn.indexer", offset=0)),
    ("hy_v4-sparse", "one token more is read", on("attn.indexer", top_k=12)),
    ("hy_v4-sparse", "experts without a limit", on("ffn.experts", kind=ops.GluOp.SWIGLU, limit=0.0)),
    ("hy_v4-sparse", "streams mixed without epsilon", on("attn_mix", eps=0.0)),
    ("hy_v4-sparse", "what is added half as large", on("ffn_mix", magnitude=1.0)),
    ("minicpm3-dense", "residuals as they are", on("", residual=1.0)),
    ("minicpm3-plain", "factors of long contexts", each_block(long_factors)),
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
]
"""(file, what is wrong, how)"""


@pytest.mark.parametrize(("name", "wrong", "mutate"), MUTANTS, ids=[f"{name}: {wrong}" for name, wrong, _ in MUTANTS])
def test_is_caught(arch_peer: ArchPeer, name: str, wrong: str, mutate: Mutate) -> None:
    assert not difference(arch_peer, name, mutate) < 2 * LIMIT, wrong
