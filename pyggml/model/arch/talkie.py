"""talkie: norms without weights before, behind positions and of embeddings, which each layer adds again with a factor; a factor
for each head of queries (llama.cpp: models/talkie.cpp)."""

from collections.abc import Mapping
from typing import Any

from pyggml import ops
from pyggml.model.attention import Attention
from pyggml.model.blocks import Block as Base
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.mlp import GatedMLP
from pyggml.model.module import Module, Weight
from pyggml.model.norms import PlainRMSNorm, RMSNorm
from pyggml.model.rope import Rope
from pyggml.tensor import Tensor

SKIP = "embd_skip"


class Block(Base):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il, norm=PlainRMSNorm)
        self.attn = Attention(hp, il, rope=Rope(hp, ops.ROPE_NEOX), qk_norm="head", norm_last=True)
        self.attn.attn_q_norm = RMSNorm(1, hp.rms_eps, heads=hp.n_head(il))
        self.attn.attn_k_norm = PlainRMSNorm.of(hp)
        self.ffn = GatedMLP(hp.n_embd, hp.n_ff(il))
        self.layer_output_scale = Skip()

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        return self.layer_output_scale(g, super().__call__(g, x))


class Skip(Module):
    """x + a factor * embeddings."""

    def __init__(self) -> None:
        self.weight = Weight(1)

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        skip = g.handed_on[SKIP]
        if x.ne[1] < g.n_tokens:
            (skip,) = g.select_outputs(self.il, skip)
        return ops.add(x, ops.mul(skip, self.weight.value), name=f"l_skip-{self.il}")


class Model(CausalLM):
    block, norm = Block, PlainRMSNorm

    def __init__(self, hp: Hparams, tensors: Mapping[str, Any]) -> None:
        super().__init__(hp, tensors)
        self.logit_scale = hp.f32("logit_scale")

    def embed(self, g: GraphBuilder) -> Tensor:
        g.handed_on[SKIP] = ops.rms_norm(super().embed(g), self.hp.rms_eps, name="inp_norm")
        return g.handed_on[SKIP]
