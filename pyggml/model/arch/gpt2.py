"""gpt2: layer norms, biases, an embedding for each position (llama.cpp: models/gpt2.cpp)."""

from collections.abc import Mapping
from typing import Any

from pyggml import ops
from pyggml.model.attention import Attention
from pyggml.model.blocks import Block as Base
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM, PositionEmbedding
from pyggml.model.mlp import MLP, gelu
from pyggml.model.norms import LayerNorm
from pyggml.tensor import Tensor


class Block(Base):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il, norm=LayerNorm)
        self.attn = Attention(hp, il, rope=None)
        self.ffn = MLP(hp.n_embd, hp.n_ff(il), gelu)


class Model(CausalLM):
    block, norm = Block, LayerNorm

    def __init__(self, hp: Hparams, tensors: Mapping[str, Any]) -> None:
        super().__init__(hp, tensors)
        self.position_embd = PositionEmbedding(hp.n_embd, hp.n_ctx_train)

    def embed(self, g: GraphBuilder) -> Tensor:
        return ops.add(self.token_embd(g), self.position_embd(g), name="inpL")
