"""arwkv7 (ARWKV 7): qwen2 with the time mixes of RWKV 7 in the place of attention (llama.cpp: models/arwkv7.cpp)."""

from pyggml.model.blocks import PreNormBlock
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.mlp import GatedMLP
from pyggml.model.rwkv import TimeMix7


class Block(PreNormBlock):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il)
        self.attn = TimeMix7(hp, il, plain=True)
        self.ffn = GatedMLP(hp.n_embd, hp.n_ff(il))


class Model(CausalLM):
    block = Block
