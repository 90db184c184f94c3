"""gemma2: gemma with norms behind attention and feed-forward network too, a window in every second layer, and soft caps of
scores and logits (llama.cpp: models/gemma2.cpp)."""

import math
from collections.abc import Mapping
from typing import Any

from pyggml import ops
from pyggml.model.arch import gemma
from pyggml.model.attention import Attention
from pyggml.model.blocks import Block as Base
from pyggml.model.hparams import Hparams
from pyggml.model.mlp import GatedMLP
from pyggml.model.rope import Rope

WINDOW, SCORES, LOGITS = 4096, 50.0, 30.0
"""Of files that do not say (llama-hparams.h)."""


def attention_scale(hp: Hparams, n_layer_27b: int) -> float:
    """1 / sqrt(head size), but in the model of 27B, known by its layers: 1 / sqrt(n_embd / n_head)."""
    size = hp.n_embd // hp.n_head() if hp.n_layer == n_layer_27b else hp.head_k()
    return 1.0 / math.sqrt(size)


class Block(Base):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il, post=True)
        windows = hp.windows.pattern(2)
        window = (hp.windows.size or WINDOW) if windows[il] else None
        rope = Rope.windowed(hp, ops.ROPE_NEOX, window)
        cap = hp.f32("attn_logit_softcapping", SCORES, positive=False)
        self.attn = Attention(hp, il, rope=rope, window=window, scale=attention_scale(hp, 46), softcap=cap)
        self.ffn = GatedMLP(hp.n_embd, hp.n_ff(il), ops.GluOp.GEGLU)


class Model(gemma.Model):
    block = Block

    def __init__(self, hp: Hparams, tensors: Mapping[str, Any]) -> None:
        super().__init__(hp, tensors)
        self.logit_softcap = hp.f32("final_logit_softcapping", LOGITS, positive=False)
