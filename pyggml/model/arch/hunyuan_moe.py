"""hunyuan-moe: norms of each head of queries and keys, after they are turned; experts, and one that every token uses
(llama.cpp: models/hunyuan-moe.cpp)."""

from pyggml import ops
from pyggml.model.attention import Attention
from pyggml.model.blocks import PreNormBlock
from pyggml.model.experts import Experts, ExpertsAndShared
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.rope import Rope


class Block(PreNormBlock):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il)
        self.attn = Attention(hp, il, rope=Rope(hp, ops.ROPE_NEOX), qk_norm="head", norm_last=True)
        experts = Experts.of(hp, il, hp.n_ff(il), renormalise=True)
        self.ffn = ExpertsAndShared(hp, experts, hp.expert.n_ff_shared or hp.n_ff(il))


class Model(CausalLM):
    block = Block
