"""qwen: llama with biases of queries, keys and values, half of feed_forward_length, and rotary positions on the halves of a
head (llama.cpp: models/qwen.cpp)."""

from pyggml import ops
from pyggml.model.attention import Attention
from pyggml.model.blocks import PreNormBlock
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.mlp import GatedMLP
from pyggml.model.rope import Rope


class Block(PreNormBlock):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il)
        self.attn = Attention(hp, il, rope=Rope(hp, ops.ROPE_NEOX))
        self.ffn = GatedMLP(hp.n_embd, hp.n_ff(il) // 2)


class Model(CausalLM):
    block = Block
