"""gemma-embedding: gemma3's block over all tokens, with a window to both sides in most layers, and two dense layers at the end
(llama.cpp: models/gemma-embedding.cpp)."""

import math
from collections.abc import Mapping
from typing import Any

from pyggml import ops
from pyggml.model.attention import Attention
from pyggml.model.blocks import Block as Base
from pyggml.model.encoder import Encoder
from pyggml.model.hparams import Hparams
from pyggml.model.mlp import GatedMLP
from pyggml.model.pooling import Head
from pyggml.model.rope import Rope


class Block(Base):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il, post=True)
        window = hp.windows.of(il, 6)
        self.attn = Attention(
            hp, il, rope=Rope.windowed(hp, ops.ROPE_NEOX, window), qk_norm="head", window=window, symmetric=True
        )
        self.ffn = GatedMLP(hp.n_embd, hp.n_ff(il), ops.GluOp.GEGLU)


class Model(Encoder):
    block = Block
    ignored = ("output.weight",)

    def __init__(self, hp: Hparams, tensors: Mapping[str, Any]) -> None:
        super().__init__(hp, tensors)
        self.embed_scale = math.sqrt(hp.n_embd)

    def make_head(self, hp: Hparams) -> Head:
        return Head(hp, projected=True)
