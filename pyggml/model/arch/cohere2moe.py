"""cohere2moe: cohere2 with experts behind the first layers, whose result and that of an expert that every token uses are
averaged (llama.cpp: models/cohere2moe.cpp)."""

from collections.abc import Mapping
from typing import Any

from pyggml import ops
from pyggml.model.attention import Attention
from pyggml.model.blocks import ParallelBlock
from pyggml.model.experts import Experts, ExpertsAndShared
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.mlp import GatedMLP
from pyggml.model.norms import LayerNorm, RMSNorm
from pyggml.model.rope import Rope
from pyggml.tensor import Tensor


def norm_of(hp: Hparams) -> Any:
    """The kind of norms that the file has a number for; RMS where it has both."""
    return RMSNorm if hp.f32("attention.layer_norm_rms_epsilon", 0.0, positive=False) else LayerNorm


class Block(ParallelBlock):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il, norm=norm_of(hp))
        window = hp.windows.of(il, 4, dense_first=True)
        dense = il < hp.expert.n_dense
        self.attn = Attention(hp, il, rope=Rope(hp, ops.ROPE_NORMAL) if window or dense else None, window=window)
        if dense:
            self.ffn = GatedMLP(hp.n_embd, hp.n_ff(il))
            return
        experts = Experts.of(hp, il, gating=hp.expert.gating or "sigmoid")
        n_ff_shared = hp.expert.n_ff_shared or (hp.expert.n_ff(il) or hp.n_ff(il)) * hp.expert.n_shared
        self.ffn = Averaged(hp, experts, n_ff_shared) if hp.expert.n_shared else experts


class Averaged(ExpertsAndShared):
    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        return ops.scale(super().__call__(g, x), 0.5, name=f"ffn_averaged-{self.il}")


class Model(CausalLM):
    block = Block

    def __init__(self, hp: Hparams, tensors: Mapping[str, Any]) -> None:
        self.norm = norm_of(hp)
        super().__init__(hp, tensors)
        self.logit_scale = hp.f32("logit_scale", positive=False) or 1.0
