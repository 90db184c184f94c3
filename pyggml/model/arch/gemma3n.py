"""gemma3n (E2B, E4B): four versions of each embedding, embeddings for each layer, a product of low rank beside attention,
gates of which the first layers keep the largest, and last layers that read the keys of earlier ones
(llama.cpp: models/gemma3n.cpp)."""

import math
from collections.abc import Mapping
from typing import Any

from pyggml import ops
from pyggml.model.altup import AltUp, Vector, Versions, rest_of
from pyggml.model.arch import gemma
from pyggml.model.attention import Attention, sharing
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.linear import Linear
from pyggml.model.mlp import GatedMLP, relu
from pyggml.model.module import Module
from pyggml.model.norms import RMSNorm
from pyggml.model.per_layer import NAME, PerLayerInput, PerLayerProjection, PerLayerTable, slice_of
from pyggml.model.rope import Rope
from pyggml.tensor import Tensor

N_PER_LAYER, RANK = 256, 64
FIRST_SHARING, N_SPARSE, SPARSITY = 20, 10, 1.6448533535003662
"""Of all models of this architecture: llama-hparams.h and models.h. A gate of a sparse layer counts above mean + SPARSITY *
standard deviation."""


class Block(Module):
    def __init__(self, hp: Hparams, il: int) -> None:
        window = hp.windows.of(il, 5)
        self.altup = AltUp(hp)
        self.attn_norm = RMSNorm.of(hp)
        self.laurel = Laurel(hp)
        self.attn = Attention(
            hp, il, rope=Rope.windowed(hp, ops.ROPE_NEOX, window, base=10000.0, scale=1.0),
            qk_norm="head", v_norm=True, window=window, scale=1.0,
            shares=sharing(hp, il, FIRST_SHARING, hp.windows.pattern(5)),
        )  # fmt: skip
        self.post_attention_norm = RMSNorm.of(hp)
        self.ffn_norm = RMSNorm.of(hp)
        self.ffn = (SparseMLP if il < N_SPARSE else GatedMLP)(hp.n_embd, hp.n_ff(il), ops.GluOp.GEGLU)
        self.post_ffw_norm = RMSNorm.of(hp)
        self.altup_correct_scale = Vector(hp.n_embd)
        self.per_layer = PerLayerInput(hp, N_PER_LAYER)

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        """(n_embd, n_tokens, versions) -> the same."""
        predictions = self.altup.predict(g, x)
        active = slice_of(predictions, 0)
        normed = self.attn_norm(g, active)
        low = self.laurel(g, normed)
        cur = ops.add(self.post_attention_norm(g, self.attn(g, normed)), active)
        cur = ops.scale(ops.add(cur, low), 1.0 / math.sqrt(2.0))
        made = ops.add(self.post_ffw_norm(g, self.ffn(g, self.ffn_norm(g, cur))), cur)
        corrected = self.altup.correct(g, predictions, made)
        first = self.per_layer(g, self.altup_correct_scale(g, slice_of(corrected, 0)))
        return ops.concat(slice_of(corrected, 0), ops.add(rest_of(corrected), first), 2, name=f"l_out-{self.il}")


class Laurel(Module):
    """x + norm(r(l(x))), by way of RANK elements."""

    def __init__(self, hp: Hparams) -> None:
        self.laurel_l = Linear(hp.n_embd, RANK, plain=True)
        self.laurel_r = Linear(RANK, hp.n_embd, plain=True)
        self.laurel_post_norm = RMSNorm.of(hp)

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        return ops.add(self.laurel_post_norm(g, g.linear(self.laurel_r, g.linear(self.laurel_l, x))), x)


class SparseMLP(GatedMLP):
    """Of the gates only those count that are far above their mean, by as much as they are."""

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        up, gate = g.linear(self.matrix("up"), x), g.linear(self.matrix("gate"), x)
        mean = ops.mean(gate)
        squares = ops.sum_rows(ops.sqr(ops.sub(gate, mean)))
        deviation = ops.sqrt(ops.scale(squares, 1.0 / (gate.ne[0] - 1)))
        gate = relu(ops.sub(gate, ops.add(mean, ops.scale(deviation, SPARSITY))))
        return g.linear(self.matrix("down"), ops.glu(gate, up, self.kind))


class Model(gemma.Model):
    block = Block

    def __init__(self, hp: Hparams, tensors: Mapping[str, Any]) -> None:
        super().__init__(hp, tensors)
        self.logit_softcap = 30.0
        self.altup_proj = Versions(hp.n_embd)
        self.altup_unembd_proj = Versions(hp.n_embd)
        self.per_layer_token_embd = PerLayerTable(N_PER_LAYER, hp.n_layer, self.n_vocab)
        self.blk[0].projection = PerLayerProjection(hp, N_PER_LAYER)

    def embed(self, g: GraphBuilder) -> Tensor:
        x = super().embed(g)
        g.handed_on[NAME] = self.blk[0].projection(g, self.per_layer_token_embd(g), x)
        return self.altup_proj.split(g, x)

    def normed(self, g: GraphBuilder, x: Tensor) -> Tensor:
        (x,) = g.select_outputs(self.hp.n_layer - 1, self.altup_unembd_proj.merge(g, x))
        return super().normed(g, x)
