"""grok (Grok 1 and 2): scores and logits with a soft cap, norms before and behind attention and feed-forward network, experts
with GELU and perhaps a network that every token uses (llama.cpp: models/grok.cpp)."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from pyggml import ops
from pyggml.model.attention import Attention
from pyggml.model.blocks import PreNormBlock
from pyggml.model.experts import Experts
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.linear import Linear
from pyggml.model.mlp import GatedMLP, gelu
from pyggml.model.module import Module, Weight
from pyggml.model.norms import NamedNorm, RMSNorm
from pyggml.model.rope import Rope
from pyggml.model.rope_options import RopeScaling
from pyggml.tensor import Tensor


class Block(PreNormBlock):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il)
        rope = Rope(hp, ops.ROPE_NEOX, scaling=_scaling(hp))
        scale = hp.f32("attention.output_scale", 0.08838834764831845)
        softcap = hp.f32("attn_logit_softcapping", 30.0)
        self.attn = Attention(hp, il, rope=rope, scale=scale, softcap=softcap)
        self.post_attention_norm = NamedNorm("attn_output_norm", RMSNorm.of(hp))
        self.ffn = ExpertsAndDense(hp, il)
        self.post_ffw_norm = LastNorm(hp)


class ExpertsAndDense(Module):
    """Experts; where the file has a network for every token, the sum of both by sqrt(2)."""

    def __init__(self, hp: Hparams, il: int) -> None:
        experts: dict[str, Any] = {
            "gating": "softmax",
            "renormalise": True,
            "kind": ops.GluOp.GEGLU,
            "activation": gelu,
        }
        self.experts = Experts.of(hp, il, hp.n_ff(il), **experts)
        self.dense = PerhapsMLP(hp.n_embd, hp.n_ff(il), ops.GluOp.GEGLU)

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        cur = self.experts(g, x)
        if not self.dense.there:
            return cur
        return ops.scale(ops.add(self.dense(g, x), cur), math.sqrt(2) / 2, name=f"ffn_out-{self.il}")


class PerhapsMLP(GatedMLP):
    """A gated network that the file may lack, whole."""

    @property
    def there(self) -> bool:
        return self.matrix("up").weight.there

    def wanted(self, tensors: Mapping[str, Any]) -> Iterator[Weight]:
        matrices: list[Linear] = [self.matrix(name) for name in ("gate", "up", "down")]
        here = any(matrix.weight.name in tensors for matrix in matrices)
        for matrix in matrices:
            matrix.weight.required = here
        yield from super().wanted(tensors)


class LastNorm(Module):
    """The norm behind the feed-forward network, by either of its names."""

    def __init__(self, hp: Hparams) -> None:
        self.layer_output_norm = RMSNorm.of(hp, required=False)
        self.post_ffw_norm = RMSNorm.of(hp)

    def wanted(self, tensors: Mapping[str, Any]) -> Iterator[Weight]:
        self.post_ffw_norm.weight.required = self.layer_output_norm.weight.name not in tensors
        yield from super().wanted(tensors)

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        norm = self.layer_output_norm if self.layer_output_norm.weight.there else self.post_ffw_norm
        return norm(g, x)


def _scaling(hp: Hparams) -> RopeScaling:
    return hp.scaled_rope(
        ext_factor=hp.f32("rope.scaling.yarn_ext_factor", -1.0, positive=False),
        yarn_attn_factor=hp.f32("rope.scaling.yarn_attn_factor", 1.0, positive=False),
        **hp.yarn_betas(fast=8.0),
    )


class Model(CausalLM):
    block = Block

    def __init__(self, hp: Hparams, tensors: Mapping[str, Any]) -> None:
        super().__init__(hp, tensors)
        self.embed_scale = hp.f32("embedding_scale", 78.38367176906169, positive=False)
        self.logit_scale = hp.f32("logit_scale", 0.5773502691896257, positive=False)
        self.logit_softcap = hp.f32("final_logit_softcapping", 0.0, positive=False)
