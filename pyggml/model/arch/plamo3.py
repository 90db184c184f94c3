"""plamo3 (PLaMo 3): norms before and behind, and of each head of queries and keys; one matrix for queries, keys and values, one
for gate and up; windows with positions of their own in seven of eight layers (llama.cpp: models/plamo3.cpp)."""

from pyggml import ops
from pyggml.model.attention import Attention
from pyggml.model.blocks import Block as Base
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.mlp import FusedGatedMLP
from pyggml.model.norms import BareRMSNorm
from pyggml.model.rope import Rope


class Block(Base):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il)
        window = hp.windows.of(il, 8)
        rope = Rope.windowed(hp, ops.ROPE_NEOX, window, base=10000.0, scale=1.0)
        self.attn = Attention(hp, il, rope=rope, qk_norm="head", window=window)
        self.post_attention_norm = BareRMSNorm.of(hp)
        self.ffn = FusedGatedMLP(hp.n_embd, hp.n_ff(il))
        self.post_ffw_norm = BareRMSNorm.of(hp)


class Model(CausalLM):
    block = Block
