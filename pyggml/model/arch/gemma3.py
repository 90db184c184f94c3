"""gemma3: gemma2 with norms of queries and keys, a window in five of six layers, and positions of its own there
(llama.cpp: models/gemma3.cpp)."""

from collections.abc import Mapping
from typing import Any

from pyggml import ops
from pyggml.model.arch import gemma
from pyggml.model.arch.gemma2 import attention_scale
from pyggml.model.attention import Attention
from pyggml.model.blocks import Block as Base
from pyggml.model.hparams import Hparams
from pyggml.model.mlp import GatedMLP
from pyggml.model.rope import Rope


class Block(Base):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il, post=True)
        window = hp.windows.of(il, 6)
        rope = Rope.windowed(hp, ops.ROPE_NEOX, window, base=10000.0, scale=1.0)
        self.attn = Attention(hp, il, rope=rope, qk_norm="head", window=window, scale=attention_scale(hp, 62))
        self.ffn = GatedMLP(hp.n_embd, hp.n_ff(il), ops.GluOp.GEGLU)


class Model(gemma.Model):
    block = Block
    ignored = ("dense_2.weight", "dense_3.weight")

    def __init__(self, hp: Hparams, tensors: Mapping[str, Any]) -> None:
        super().__init__(hp, tensors)
        self.logit_softcap = hp.f32("final_logit_softcapping", 0.0, positive=False)
