"""nanbeige: llama with rotary positions on neighbours (llama.cpp: models/nanbeige.cpp), of files whose layers are gone through
once."""

from pyggml import ops
from pyggml.errors import ModelError
from pyggml.model.attention import Attention
from pyggml.model.blocks import PreNormBlock
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.mlp import GatedMLP
from pyggml.model.rope import Rope


class Block(PreNormBlock):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il)
        if (n := hp.u32("num_loops", 1)) != 1:
            raise ModelError(f"key {hp.architecture}.num_loops is {n}: going through layers again is not supported")
        self.attn = Attention(hp, il, rope=Rope(hp, ops.ROPE_NORMAL), scale=hp.attention_scale)
        self.ffn = GatedMLP(hp.n_embd, hp.n_ff(il))


class Model(CausalLM):
    block = Block
