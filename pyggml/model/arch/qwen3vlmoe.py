"""qwen3vlmoe: qwen3moe with positions of several axes (llama.cpp: models/qwen3vlmoe.cpp)."""

from pyggml import ops
from pyggml.model.attention import Attention
from pyggml.model.blocks import PreNormBlock
from pyggml.model.experts import Experts
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.rope import Rope


class Block(PreNormBlock):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il)
        self.attn = Attention(hp, il, rope=Rope(hp, ops.ROPE_IMROPE), qk_norm="head")
        self.ffn = Experts.of(hp, il, hp.n_ff(il) // hp.n_expert_used, renormalise=True)


class Model(CausalLM):
    block = Block
