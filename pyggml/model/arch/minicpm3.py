"""minicpm3: latent attention, of which the cache holds each head's keys and values; factors of its own for embeddings, residuals
and logits (llama.cpp: models/minicpm3.cpp)."""

import math
from collections.abc import Mapping
from typing import Any

from pyggml import ops
from pyggml.model.blocks import Block as Base
from pyggml.model.hparams import Hparams
from pyggml.model.latent_attention import ExpandedAttention
from pyggml.model.layers import CausalLM
from pyggml.model.mlp import GatedMLP
from pyggml.model.rope import Rope


class Block(Base):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il, residual=1.4 / math.sqrt(hp.n_layer))
        self.attn = ExpandedAttention(hp, il, rope=Rope(hp, ops.ROPE_NEOX, factors="short"))
        self.ffn = GatedMLP(hp.n_embd, hp.n_ff(il))


class Model(CausalLM):
    block, embed_scale = Block, 12.0

    def __init__(self, hp: Hparams, tensors: Mapping[str, Any]) -> None:
        super().__init__(hp, tensors)
        self.logit_scale = 256 / hp.n_embd
