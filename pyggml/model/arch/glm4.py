"""glm4: norms before and behind attention and feed-forward network, one matrix for gate and up, part of a head turned
(llama.cpp: models/glm4.cpp)."""

from pyggml import ops
from pyggml.model.attention import Attention
from pyggml.model.blocks import Block as Base
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.mlp import FusedGatedMLP
from pyggml.model.rope import Rope


class Block(Base):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il, post=True)
        mode = ops.ROPE_MROPE if hp.has_sections else ops.ROPE_NORMAL
        self.attn = Attention(hp, il, rope=Rope(hp, mode))
        self.ffn = FusedGatedMLP(hp.n_embd, hp.n_ff(il))


class Model(CausalLM):
    block = Block
