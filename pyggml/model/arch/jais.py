"""jais: layer norms, ALiBi, products of queries and keys divided by the head size (llama.cpp: models/jais.cpp)."""

from pyggml.model.attention import Attention
from pyggml.model.blocks import Block as Base
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.mlp import GatedMLP
from pyggml.model.norms import LayerNorm


class Block(Base):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il, norm=LayerNorm)
        self.attn = Attention(hp, il, rope=None, scale=1.0 / hp.head_k(il), max_bias=hp.max_bias)
        self.ffn = GatedMLP(hp.n_embd, hp.n_ff(il))


class Model(CausalLM):
    block, norm = Block, LayerNorm
