"""qwen2moe (Qwen 1.5 and 2 MoE): qwen2 with experts, and one that every token uses, behind a gate
(llama.cpp: models/qwen2moe.cpp)."""

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
        self.attn = Attention(hp, il, rope=Rope(hp, ops.ROPE_NEOX))
        experts = Experts.of(hp, il, hp.n_ff(il) // hp.n_expert_used, renormalise=False)
        self.ffn = ExpertsAndShared(hp, experts, hp.expert.n_ff_shared or hp.n_ff(il), gated=True)


class Model(CausalLM):
    block = Block
