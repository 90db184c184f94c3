"""olmo: llama with layer norms without weights; queries, keys and values are cut (llama.cpp: models/olmo.cpp)."""

from pyggml import ops
from pyggml.model.attention import Attention
from pyggml.model.blocks import Block as Base
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.mlp import GatedMLP
from pyggml.model.norms import PlainNorm
from pyggml.model.rope import Rope


class Block(Base):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il, norm=PlainNorm)
        self.attn = Attention(
            hp, il, rope=Rope(hp, ops.ROPE_NORMAL), clamp=hp.f32("attention.clamp_kqv", 0.0, positive=False)
        )
        self.ffn = GatedMLP(hp.n_embd, hp.n_ff(il))


class Model(CausalLM):
    block, norm = Block, PlainNorm
