"""chatglm (ChatGLM, GLM-4-9B): llama with one matrix for gate and up, part of a head turned (llama.cpp: models/chatglm.cpp)."""

from pyggml import ops
from pyggml.model.attention import Attention
from pyggml.model.blocks import PreNormBlock
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.mlp import FusedGatedMLP
from pyggml.model.rope import Rope


class Block(PreNormBlock):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il)
        self.attn = Attention(hp, il, rope=Rope(hp, ops.ROPE_NORMAL))
        self.ffn = FusedGatedMLP(hp.n_embd, hp.n_ff(il))


class Model(CausalLM):
    block = Block
