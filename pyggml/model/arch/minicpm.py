"""minicpm: granite with defaults of its own for the factors (llama.cpp: models/minicpm.cpp)."""

import math
from collections.abc import Mapping
from typing import Any

from pyggml import ops
from pyggml.model.attention import Attention
from pyggml.model.blocks import Block as Base
from pyggml.model.experts import Experts, ExpertsAndShared
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.mlp import GatedMLP, silu
from pyggml.model.rope import Rope


class Block(Base):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il, residual=hp.f32("residual_scale", 1.4 / math.sqrt(hp.n_layer)))
        self.attn = Attention(hp, il, rope=Rope(hp, ops.ROPE_NORMAL), scale=hp.attention_scale)
        if not hp.n_expert:
            self.ffn = GatedMLP(hp.n_embd, hp.n_ff(il))
        elif hp.expert.n_ff_shared:
            self.ffn = ExpertsAndShared(
                hp, Experts.of(hp, il, renormalise=True, activation=silu), hp.expert.n_ff_shared
            )
        else:
            self.ffn = Experts.of(hp, il, renormalise=True, activation=silu)


class Model(CausalLM):
    block = Block

    def __init__(self, hp: Hparams, tensors: Mapping[str, Any]) -> None:
        super().__init__(hp, tensors)
        self.embed_scale = hp.f32("embedding_scale", 12.0)
        self.logit_scale = 1.0 / hp.f32("logit_scale", 256.0 / hp.n_embd)
