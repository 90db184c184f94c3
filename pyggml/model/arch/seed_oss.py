"""seed_oss: llama whose norm before the feed-forward network is called post_attention_norm (llama.cpp: models/seed-oss.cpp)."""

from pyggml import ops
from pyggml.model.attention import Attention
from pyggml.model.blocks import PreNormBlock
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.mlp import GatedMLP
from pyggml.model.module import Module
from pyggml.model.norms import RMSNorm
from pyggml.model.rope import Rope
from pyggml.tensor import Tensor


class Block(PreNormBlock):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il)
        self.attn = Attention(hp, il, rope=Rope(hp, ops.ROPE_NEOX))
        self.ffn_norm = Second(hp)
        self.ffn = GatedMLP(hp.n_embd, hp.n_ff(il))


class Second(Module):
    """The norm before the feed-forward network, under its name in the file."""

    def __init__(self, hp: Hparams) -> None:
        self.post_attention_norm = RMSNorm.of(hp)

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        return self.post_attention_norm(g, x)


class Model(CausalLM):
    block = Block
