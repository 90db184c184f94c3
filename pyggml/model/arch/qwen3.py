"""qwen3: llama with norms of each head of queries and keys (llama.cpp: models/qwen3.cpp)."""

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
        self.attn = Attention(hp, il, rope=Rope(hp, ops.ROPE_NEOX), qk_norm="head")
        self.ffn = GatedMLP(hp.n_embd, hp.n_ff(il))


class Model(CausalLM):
    block = Block

    def make_head(self, hp: Hparams) -> Head:
        """Rerankers have a classifier of two answers, yes and no."""
        return Head(hp, out=True, soft_max=True)
