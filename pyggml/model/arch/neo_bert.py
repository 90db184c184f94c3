"""neo-bert: llama's block, with a gate that lies with the other half, over all tokens (llama.cpp: models/neo-bert.cpp)."""

from pyggml import ops
from pyggml.model.attention import Attention
from pyggml.model.blocks import PreNormBlock
from pyggml.model.encoder import Encoder
from pyggml.model.hparams import Hparams
from pyggml.model.mlp import FusedGatedMLP
from pyggml.model.pooling import Head
from pyggml.model.rope import Rope


class Block(PreNormBlock):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il)
        self.attn = Attention(hp, il, rope=Rope(hp, ops.ROPE_NORMAL))
        self.ffn = FusedGatedMLP(hp.n_embd, hp.n_ff(il))


class Model(Encoder):
    block = Block
    norm_name = "enc.output_norm"

    def make_head(self, hp: Hparams) -> Head:
        return Head(hp, dense=True, out=True)
