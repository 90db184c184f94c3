"""olmoe: norms of queries and keys as whole rows, experts (llama.cpp: models/olmoe.cpp)."""

from pyggml import ops
from pyggml.model.attention import Attention
from pyggml.model.blocks import PreNormBlock
from pyggml.model.experts import Experts
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.rope import Rope


class Block(PreNormBlock):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il)
        self.attn = Attention(hp, il, rope=Rope(hp, ops.ROPE_NEOX), qk_norm="row")
        self.ffn = Experts.of(hp, il, renormalise=False)


class Model(CausalLM):
    block = Block
