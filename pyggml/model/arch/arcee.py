"""arcee (AFM): llama with relu(x)^2 and no gate (llama.cpp: models/arcee.cpp)."""

from pyggml import ops
from pyggml.model.attention import Attention
from pyggml.model.blocks import PreNormBlock
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.mlp import MLP, relu_squared
from pyggml.model.rope import Rope


class Block(PreNormBlock):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il)
        self.attn = Attention(hp, il, rope=Rope(hp, ops.ROPE_NORMAL), scale=hp.attention_scale)
        self.ffn = MLP(hp.n_embd, hp.n_ff(il), relu_squared)


class Model(CausalLM):
    block = Block
