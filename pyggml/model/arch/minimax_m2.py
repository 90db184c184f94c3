"""minimax-m2 (MiniMax M2): norms of all heads of queries, and of keys, together; experts (llama.cpp: models/minimax-m2.cpp)."""

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
        self.attn = Attention(hp, il, rope=Rope(hp, ops.ROPE_NEOX), qk_norm="row")
        self.ffn = Experts.of(hp, il, hp.n_ff(il), bias=True, renormalise=True)


class Model(CausalLM):
    block = Block
