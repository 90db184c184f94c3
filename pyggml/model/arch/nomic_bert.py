"""nomic-bert: bert with rotary positions and SwiGLU (llama.cpp: models/nomic-bert.cpp)."""

from pyggml import ops
from pyggml.model.attention import Attention
from pyggml.model.encoder import Bert, PostNormBlock
from pyggml.model.hparams import Hparams
from pyggml.model.mlp import GatedMLP
from pyggml.model.rope import Rope


class Block(PostNormBlock):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il)
        self.attn = Attention(hp, il, rope=Rope(hp, ops.ROPE_NEOX))
        self.ffn = GatedMLP(hp.n_embd, hp.n_ff(il))


class Model(Bert):
    block = Block
