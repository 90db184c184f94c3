"""muse-glimmer: norms before and behind, of queries and keys, and of embeddings; a gate of what attention finds; a window,
and positions, in three of four layers (llama.cpp: models/muse-glimmer.cpp)."""

from collections.abc import Mapping
from typing import Any

from pyggml import ops
from pyggml.model.blocks import Block as Base
from pyggml.model.gated_attention import AttentionAndGate
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.mlp import GatedMLP
from pyggml.model.norms import RMSNorm
from pyggml.model.rope import Rope
from pyggml.tensor import Tensor

POST_EPSILON = 1e-8
"""Of the norms behind attention and feed-forward network (llama.cpp: post_norm_eps)."""


class Block(Base):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il)
        window = hp.windows.of(il, 4)
        rope = Rope.windowed(hp, ops.ROPE_NORMAL, window, scale=1.0) if window else None
        self.attn = AttentionAndGate(hp, il, rope=rope, qk_norm="head", window=window)
        self.post_attention_norm = RMSNorm(hp.n_embd, POST_EPSILON)
        self.ffn = GatedMLP(hp.n_embd, hp.n_ff(il))
        self.post_ffw_norm = RMSNorm(hp.n_embd, POST_EPSILON)


class Model(CausalLM):
    block = Block

    def __init__(self, hp: Hparams, tensors: Mapping[str, Any]) -> None:
        super().__init__(hp, tensors)
        self.logit_scale = hp.f32("logit_scale")
        self.logit_softcap = hp.f32("final_logit_softcapping", 30.0, positive=False)

    def embed(self, g: GraphBuilder) -> Tensor:
        return ops.rms_norm(super().embed(g), self.hp.rms_eps, name="inp_norm")
