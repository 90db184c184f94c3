"""dbrx: norms with a mean, without biases; queries, keys and values cut; experts (llama.cpp: models/dbrx.cpp)."""

from pyggml import ops
from pyggml.model.attention import Attention
from pyggml.model.blocks import Block as Base
from pyggml.model.experts import Experts
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.norms import LayerNorm, NamedNorm
from pyggml.model.rope import Rope


class Block(Base):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il, norm=LayerNorm)
        clamp = hp.f32("attention.clamp_kqv", positive=False)
        self.attn = Attention(hp, il, rope=Rope(hp, ops.ROPE_NEOX), clamp=max(clamp, 0.0))
        self.ffn_norm = NamedNorm("attn_output_norm", LayerNorm.of(hp))
        self.ffn = Experts.of(hp, il, hp.n_ff(il), gating="softmax", renormalise=True)


class Model(CausalLM):
    block, norm = Block, LayerNorm
