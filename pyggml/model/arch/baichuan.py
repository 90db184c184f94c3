"""baichuan: llama; the one of 40 layers with ALiBi in place of rotary positions (llama.cpp: models/baichuan.cpp)."""

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
        rope = Rope(hp, ops.ROPE_NORMAL) if hp.n_layer == 32 else None
        self.attn = Attention(hp, il, rope=rope, max_bias=8.0 if hp.n_layer == 40 else 0.0)
        self.ffn = GatedMLP(hp.n_embd, hp.n_ff(il))


class Model(CausalLM):
    block = Block
