"""rnd1: qwen3moe over all tokens, for diffusion (llama.cpp: models/rnd1.cpp)."""

from pyggml import ops
from pyggml.model.attention import Attention
from pyggml.model.blocks import PreNormBlock
from pyggml.model.encoder import Denoiser
from pyggml.model.experts import Experts
from pyggml.model.hparams import Hparams
from pyggml.model.rope import Rope


class Block(PreNormBlock):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il)
        self.attn = Attention(hp, il, rope=Rope(hp, ops.ROPE_NEOX), qk_norm="head")
        self.ffn = Experts.of(hp, il, hp.n_ff(il) // hp.n_expert_used, renormalise=True)


class Model(Denoiser):
    block = Block
