"""phi3 (Phi 3, 3.5 and 4): llama with one matrix for gate and up, and rotary positions on the halves of a head
(llama.cpp: models/phi3.cpp, which computes no window either)."""

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
        self.attn = Attention(hp, il, rope=Rope(hp, ops.ROPE_NEOX, factors="short"))
        self.ffn = FusedGatedMLP(hp.n_embd, hp.n_ff(il))


class Model(CausalLM):
    block, output_bias = Block, True
