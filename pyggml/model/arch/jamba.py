"""jamba: layers of Mamba, with norms of steps, B and C, and of attention without positions; a layer has experts where the
file has a router (llama.cpp: models/jamba.cpp)."""

from pyggml.model.attention import Attention
from pyggml.model.blocks import PreNormBlock
from pyggml.model.experts import Experts
from pyggml.model.hparams import Hparams
from pyggml.model.mamba import Mamba
from pyggml.model.module import Module
from pyggml.model.routed import RoutedLM


class Block(PreNormBlock):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il)
        self.attn = Attention(hp, il, rope=None) if hp.has_attention(il) else Mamba(hp, il, normed=True)


class Model(RoutedLM):
    block = Block

    def experts(self, hp: Hparams, il: int) -> Module:
        return Experts.of(hp, il, gating="softmax", renormalise=False)
