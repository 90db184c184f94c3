"""cohere2 (Command R7B, Command A): command-r with windows, and positions in layers that have one
(llama.cpp: models/cohere2.cpp)."""

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
        window = hp.windows.of(il, 4)
        rope = Rope(hp, ops.ROPE_NORMAL) if window else None
        self.attn = Attention(hp, il, rope=rope, window=window)
        self.ffn = GatedMLP(hp.n_embd, hp.n_ff(il))


class Model(CausalLM):
    block, norm = Block, LayerNorm

    def __init__(self, hp: Hparams, tensors: Mapping[str, Any]) -> None:
        super().__init__(hp, tensors)
        self.logit_scale = hp.f32("logit_scale")
