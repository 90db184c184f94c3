"""kimi-linear: Kimi delta attention, latent attention without positions where a layer has heads of keys, and experts behind
the first layers (llama.cpp: models/kimi-linear.cpp)."""

from pyggml.model.blocks import PreNormBlock
from pyggml.model.experts import Experts, ExpertsAndShared
from pyggml.model.hparams import Hparams
from pyggml.model.kimi_delta import KimiDelta
from pyggml.model.latent_attention import LatentAttention
from pyggml.model.layers import CausalLM
from pyggml.model.mlp import GatedMLP


class Block(PreNormBlock):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il)
        self.attn = LatentAttention(hp, il, rope=None) if hp.has_attention(il) else KimiDelta(hp, il)
        keys = hp.expert
        if il < keys.n_dense:
            self.ffn = GatedMLP(hp.n_embd, hp.n_ff(il))
        else:
            experts = Experts.of(hp, il, bias=True, renormalise=True)
            self.ffn = ExpertsAndShared(hp, experts, keys.n_ff(il) * max(1, keys.n_shared))


class Model(CausalLM):
    block = Block
