"""bloom: layer norms, one of the token embeddings too, biases, ALiBi (llama.cpp: models/bloom.cpp)."""

from collections.abc import Mapping
from typing import Any

from pyggml.model.attention import Attention
from pyggml.model.blocks import Block as Base
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.mlp import MLP, gelu
from pyggml.model.norms import LayerNorm
from pyggml.tensor import Tensor


class Block(Base):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il, norm=LayerNorm)
        self.attn = Attention(hp, il, rope=None, max_bias=8.0)
        self.ffn = MLP(hp.n_embd, hp.n_ff(il), gelu)


class Model(CausalLM):
    block, norm = Block, LayerNorm

    def __init__(self, hp: Hparams, tensors: Mapping[str, Any]) -> None:
        super().__init__(hp, tensors)
        self.token_embd_norm = LayerNorm.of(hp)

    def embed(self, g: GraphBuilder) -> Tensor:
        return self.token_embd_norm(g, self.token_embd(g))
