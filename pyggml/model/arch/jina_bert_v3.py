"""jina-bert-v3: bert with rotary positions (llama.cpp: models/jina-bert-v3.cpp)."""

from pyggml import ops
from pyggml.model.attention import Attention
from pyggml.model.encoder import Bert, PostNormBlock
from pyggml.model.hparams import Hparams
from pyggml.model.mlp import MLP
from pyggml.model.rope import Rope


class Block(PostNormBlock):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il)
        self.attn = Attention(hp, il, rope=Rope(hp, ops.ROPE_NEOX))
        self.ffn = MLP(hp.n_embd, hp.n_ff(il))


class Model(Bert):
    block = Block
