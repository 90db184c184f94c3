"""modern-bert: rotary positions, norms without biases before attention and feed-forward network, but the first, GELU in a gate
that lies with the other half, and in most layers a window (llama.cpp: models/modern-bert.cpp)."""

from collections.abc import Mapping
from typing import Any

from pyggml import ops
from pyggml.errors import ModelError
from pyggml.model.attention import Attention
from pyggml.model.blocks import Block as Base
from pyggml.model.encoder import Encoder
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.mlp import FusedGatedMLP
from pyggml.model.norms import LayerNorm
from pyggml.model.pooling import Head
from pyggml.model.rope import Rope
from pyggml.tensor import Tensor

TANH = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu_accurate", "gelu_python_tanh", "geglu")
KINDS = dict.fromkeys(TANH, ops.GluOp.GEGLU) | dict.fromkeys(("silu", "swish", "swiglu"), ops.GluOp.SWIGLU)


class Block(Base):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il, norm=LayerNorm)
        if not il:
            self.attn_norm = LayerNorm.of(hp, required=False)
        window = hp.windows.of(il, 3, dense_first=True)
        self.attn = Attention(hp, il, rope=Rope.windowed(hp, ops.ROPE_NEOX, window), window=window, symmetric=True)
        kind = KINDS.get(str(hp.find("hidden_activation")[1]), ops.GluOp.GEGLU_ERF)
        self.ffn = FusedGatedMLP(hp.n_embd, hp.n_ff(il), kind)


class Model(Encoder):
    block = Block
    norm = LayerNorm

    def __init__(self, hp: Hparams, tensors: Mapping[str, Any]) -> None:
        super().__init__(hp, tensors)
        if hp.u32("decision.block_count", 0, least=0):
            raise ModelError(f"key {hp.architecture}.decision.block_count: heads that decide are not computed here")
        self.token_embd_norm = LayerNorm.of(hp)

    def make_head(self, hp: Hparams) -> Head:
        return Head(hp, dense=True, out=True, activation="gelu", ranked="mean")

    def embed(self, g: GraphBuilder) -> Tensor:
        return self.token_embd_norm(g, super().embed(g))
