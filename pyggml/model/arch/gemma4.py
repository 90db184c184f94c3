"""gemma4: gemma3 whose values have norms, whose heads are larger in layers without a window, and may be values as well as
keys; the small ones with embeddings for each layer and last layers that read the keys of earlier ones; the one with experts
adds them to a dense network (llama.cpp: models/gemma4.cpp)."""

import math
from collections.abc import Mapping
from typing import Any

from pyggml import ops
from pyggml.model.arch import gemma
from pyggml.model.attention import Attention, sharing
from pyggml.model.blocks import Block as Base
from pyggml.model.experts import Experts
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.mlp import GatedMLP
from pyggml.model.module import Module, Weight
from pyggml.model.norms import RMSNorm
from pyggml.model.per_layer import NAME, PerLayerInput, PerLayerProjection, PerLayerTable
from pyggml.model.rope import Rope
from pyggml.tensor import Tensor


class Block(Base):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il, post=True)
        window = hp.windows.of(il, 5)
        first_sharing = hp.n_layer_all - hp.u32("attention.shared_kv_layers", 0, least=0)
        self.attn = Attention(
            hp, il, rope=Rope.windowed(hp, ops.ROPE_NEOX, window, base=10000.0, scale=1.0, factors="none"),
            qk_norm="head", v_norm=True, k_as_v=True, window=window, scale=1.0,
            shares=sharing(hp, il, first_sharing, hp.windows.pattern(5)),
        )  # fmt: skip
        if hp.n_expert:
            self.ffn_norm, self.ffn = None, DenseAndExperts(hp, il)
        else:
            self.ffn = Dense(hp, il)
        n_per_layer = hp.u32("embedding_length_per_layer_input", 0, least=0)
        self.per_layer = PerLayerInput(hp, n_per_layer) if n_per_layer else None
        self.layer_output_scale = OutputScale()

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        x = super().__call__(g, x)
        if self.per_layer is not None:
            x = ops.add(x, self.per_layer(g, x), name=f"per_layer_embd_out-{self.il}")
        return self.layer_output_scale(g, x)


class Dense(GatedMLP):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp.n_embd, hp.n_ff(il), ops.GluOp.GEGLU)


class DenseAndExperts(Module):
    """post_ffw_norm_1(dense(ffn_norm(x))) + post_ffw_norm_2(experts(pre_ffw_norm_2(x)))."""

    def __init__(self, hp: Hparams, il: int) -> None:
        self.ffn_norm = RMSNorm.of(hp)
        self.dense = Dense(hp, il)
        self.post_ffw_norm_1 = RMSNorm.of(hp)
        self.routed = RouterInput(hp)
        self.pre_ffw_norm_2 = RMSNorm.of(hp)
        self.experts = Experts.of(hp, il, renormalise=True, gating="softmax", scale=1.0, kind=ops.GluOp.GEGLU)
        self.post_ffw_norm_2 = RMSNorm.of(hp)

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        dense = self.post_ffw_norm_1(g, self.dense(g, self.ffn_norm(g, x)))
        router = self.experts.ffn_gate_inp
        assert router is not None
        logits = g.linear(router, self.routed(g, x))
        experts = self.experts(g, self.pre_ffw_norm_2(g, x), logits)
        return ops.add(dense, self.post_ffw_norm_2(g, experts), name=f"ffn_moe_combined-{self.il}")


class RouterInput(Module):
    """x / sqrt(mean(x^2) + eps) / sqrt(n_embd) * scale, which is called ffn_gate_inp.scale."""

    def __init__(self, hp: Hparams) -> None:
        self.eps, self.factor = hp.rms_eps, 1.0 / math.sqrt(hp.n_embd)
        self.ffn_gate_inp = Scale(hp.n_embd)

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        return ops.mul(ops.scale(ops.rms_norm(x, self.eps), self.factor), self.ffn_gate_inp.scale.value)


class Scale(Module):
    def __init__(self, n: int) -> None:
        self.scale = Weight(n)


class OutputScale(Module):
    """A number that the layer's result is multiplied by, where the file has one."""

    def __init__(self) -> None:
        self.weight = Weight(1, required=False)

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        return ops.mul(x, self.weight.value, name=f"out_scaled-{self.il}") if self.weight.there else x


class Model(gemma.Model):
    block = Block

    def __init__(self, hp: Hparams, tensors: Mapping[str, Any]) -> None:
        super().__init__(hp, tensors)
        self.logit_softcap = hp.f32("final_logit_softcapping", 0.0, positive=False)
        if n := hp.u32("embedding_length_per_layer_input", 0, least=0):
            self.per_layer_token_embd = PerLayerTable(n, hp.n_layer, self.n_vocab)
            self.blk[0].projection = PerLayerProjection(hp, n)

    def embed(self, g: GraphBuilder) -> Tensor:
        x = super().embed(g)
        if self.blk[0].per_layer is not None:
            g.handed_on[NAME] = self.blk[0].projection(g, self.per_layer_token_embd(g), x)
        return x
