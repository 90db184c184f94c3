"""command-r: attention and feed-forward network side by side behind one layer norm (llama.cpp: models/command-r.cpp)."""

from collections.abc import Mapping
from typing import Any

from pyggml import ops
from pyggml.model.attention import Attention
from pyggml.model.blocks import ParallelBlock
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.mlp import GatedMLP
from pyggml.model.norms import LayerNorm
from pyggml.model.rope import Rope


class Block(ParallelBlock):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il, norm=LayerNorm)
        normed = "heads" if hp.n_layer >= 64 else None
        self.attn = Attention(hp, il, rope=Rope(hp, ops.ROPE_NORMAL), qk_norm=normed, norm=LayerNorm)
        self.ffn = GatedMLP(hp.n_embd, hp.n_ff(il))


class Model(CausalLM):
    block, norm = Block, LayerNorm

    def __init__(self, hp: Hparams, tensors: Mapping[str, Any]) -> None:
        super().__init__(hp, tensors)
        self.logit_scale = hp.f32("logit_scale", 0.0, positive=False) or 1.0
