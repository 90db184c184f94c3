"""phimoe (Phi 3.5 MoE): phi3 with biases of norms, and experts (llama.cpp: models/phimoe.cpp)."""

from pyggml import ops
from pyggml.model.attention import Attention
from pyggml.model.blocks import Block as Base
from pyggml.model.experts import Experts
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.norms import BiasedRMSNorm
from pyggml.model.rope import Rope


class Block(Base):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il, norm=BiasedRMSNorm)
        self.attn = Attention(hp, il, rope=Rope(hp, ops.ROPE_NEOX, factors="short"))
        self.ffn = Experts.of(hp, il, renormalise=True)


class Model(CausalLM):
    block, norm, output_bias = Block, BiasedRMSNorm, True
