"""rwkv6qwen2 (QRWKV 6): qwen2 with time mixes in the place of attention (llama.cpp: models/rwkv6qwen2.cpp)."""

from pyggml.model.blocks import PreNormBlock
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.mlp import GatedMLP
from pyggml.model.norms import RMSNorm
from pyggml.model.rwkv import TimeMix6


class Norm(RMSNorm):
    """The last one, which may have a bias."""

    biased = True


class Block(PreNormBlock):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il)
        self.attn = TimeMix6(hp, il, plain=True)
        self.ffn = GatedMLP(hp.n_embd, hp.n_ff(il))


class Model(CausalLM):
    block = Block
    norm = Norm
