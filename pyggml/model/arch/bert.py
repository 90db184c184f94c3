"""bert: positions are learned, norms stand behind attention and feed-forward network, GELU without a gate
(llama.cpp: models/bert.cpp)."""

from pyggml.model.attention import Attention
from pyggml.model.encoder import Bert, PostNormBlock
from pyggml.model.hparams import Hparams
from pyggml.model.mlp import MLP
from pyggml.model.pooling import Head


class Block(PostNormBlock):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il)
        self.attn = Attention(hp, il, rope=None)
        self.ffn = MLP(hp.n_embd, hp.n_ff(il))


class Model(Bert):
    block = Block
    positions = True

    def make_head(self, hp: Hparams) -> Head:
        return Head(hp, dense=True, out=True)
