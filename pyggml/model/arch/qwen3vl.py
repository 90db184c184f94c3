"""qwen3vl: qwen3 with positions of several axes (llama.cpp: models/qwen3vl.cpp). What images add in the first layers is
nothing for text."""

from pyggml import ops
from pyggml.model.attention import Attention
from pyggml.model.blocks import PreNormBlock
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.mlp import GatedMLP
from pyggml.model.pooling import Head
from pyggml.model.rope import Rope


class Block(PreNormBlock):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il)
        self.attn = Attention(hp, il, rope=Rope(hp, ops.ROPE_IMROPE), qk_norm="head")
        self.ffn = GatedMLP(hp.n_embd, hp.n_ff(il))


class Model(CausalLM):
    block = Block

    def make_head(self, hp: Hparams) -> Head:
        """As of qwen3."""
        return Head(hp, out=True, soft_max=True)
