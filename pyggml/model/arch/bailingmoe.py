"""bailingmoe (Ling): experts, and some that every token uses (llama.cpp: models/bailingmoe.cpp)."""

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
        self.attn = Attention(hp, il, rope=Rope(hp, ops.ROPE_NORMAL), scale=hp.n_rot**-0.5)
        experts = Experts.of(hp, il, gating="softmax")
        self.ffn = ExpertsAndShared(hp, experts, hp.expert.n_ff(il) * hp.expert.n_shared)


class Model(CausalLM):
    block = Block
