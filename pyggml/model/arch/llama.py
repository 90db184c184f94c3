"""llama: RMS norms, rotary positions on neighbouring pairs, grouped-query attention, SwiGLU; or, with experts (Mixtral), as
many SwiGLUs a token as its router wants (llama.cpp: models/llama.cpp)."""

from pyggml import ops
from pyggml.model.attention import Attention
from pyggml.model.blocks import PreNormBlock
from pyggml.model.experts import Experts
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.mlp import GatedMLP, silu
from pyggml.model.rope import Rope


class Block(PreNormBlock):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il)
        self.attn = Attention(hp, il, rope=Rope(hp, ops.ROPE_NORMAL))
        if hp.n_expert:
            self.ffn = Experts(hp.n_embd, hp.n_ff(il), hp.n_expert, hp.n_expert_used, activation=silu)
        else:
            self.ffn = GatedMLP(hp.n_embd, hp.n_ff(il))


class Model(CausalLM):
    block = Block
