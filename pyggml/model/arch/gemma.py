"""gemma: llama with GELU in the gate, and embeddings that are scaled by the root of their size
(llama.cpp: models/gemma.cpp)."""

import math
from collections.abc import Mapping
from typing import Any

from pyggml import ops
from pyggml.model.attention import Attention
from pyggml.model.blocks import PreNormBlock
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.mlp import GatedMLP
from pyggml.model.rope import Rope


class Block(PreNormBlock):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il)
        self.attn = Attention(hp, il, rope=Rope(hp, ops.ROPE_NEOX))
        self.ffn = GatedMLP(hp.n_embd, hp.n_ff(il), ops.GluOp.GEGLU)


class Model(CausalLM):
    block: type[Any] = Block

    def __init__(self, hp: Hparams, tensors: Mapping[str, Any]) -> None:
        super().__init__(hp, tensors)
        self.embed_scale = math.sqrt(hp.n_embd)
