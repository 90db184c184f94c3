"""mellum: qwen3moe with windows in three of four layers, whose positions are not scaled (llama.cpp: models/mellum.cpp)."""

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
        window = hp.windows.of(il, 4)
        rope = Rope(hp, ops.ROPE_NEOX, freq_scale=1.0, scaled=False) if window else Rope(hp, ops.ROPE_NEOX)
        self.attn = Attention(hp, il, rope=rope, qk_norm="head", window=window)
        n_ff = hp.expert.n_ff(il) or hp.n_ff(il) // hp.n_expert_used
        self.ffn = Experts.of(hp, il, n_ff, gating="softmax", renormalise=True, scale=1.0)


class Model(CausalLM):
    block = Block
