"""hy_v3 (Hunyuan 3): norms of each head of queries and keys; experts where the file has a router, and one that every token uses
(llama.cpp: models/hy-v3.cpp)."""

from pyggml import ops
from pyggml.model.attention import Attention
from pyggml.model.blocks import PreNormBlock
from pyggml.model.experts import Experts, ExpertsAndShared
from pyggml.model.hparams import Hparams
from pyggml.model.module import Module
from pyggml.model.rope import Rope
from pyggml.model.routed import RoutedLM


class Block(PreNormBlock):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il)
        self.attn = Attention(hp, il, rope=Rope(hp, ops.ROPE_NEOX), qk_norm="head")


class Model(RoutedLM):
    block = Block

    def experts(self, hp: Hparams, il: int) -> Module:
        n_ff = hp.expert.n_ff(il) or hp.n_ff(il) // hp.n_expert_used
        experts = Experts.of(hp, il, n_ff, bias=True, gating=hp.expert.gating or "sigmoid")
        assert experts.exp_probs_b is not None
        experts.exp_probs_b.bias.alone = True
        return ExpertsAndShared(hp, experts, hp.expert.n_ff_shared or n_ff)
