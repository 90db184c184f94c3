"""t5encoder: T5's first half. Scores have a bias by how far tokens are apart, in few buckets, and no scale; RMS norms, and a
feed-forward network with ReLU, or with GELU in a gate (llama.cpp: models/t5encoder.cpp, t5.cpp)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyggml import ops
from pyggml.dtypes import GGMLType
from pyggml.memory.ubatch import Ubatch
from pyggml.model.attention import Attention
from pyggml.model.blocks import PreNormBlock
from pyggml.model.encoder import Encoder
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.linear import Linear
from pyggml.model.mlp import relu
from pyggml.model.module import Module, Weight
from pyggml.tensor import Tensor

FARTHEST = 128  # tokens; all that lie farther are in one bucket (llama-graph.cpp: llama_relative_position_bucket)
BIAS = "pos_bias"


def buckets(away: NDArray[np.int64], n: int) -> NDArray[np.int32]:
    """Of `n` buckets that of a token so far behind (below 0) or ahead: half of them are for each side; of these half are for
    one distance each, the others grow with it."""
    side, far = n // 2, np.abs(away)
    exact = side // 2
    ratio = np.log((np.maximum(far, 1) / exact).astype(np.float32))  # in the reference's precision, step by step
    steps = exact + (ratio * np.float32(side - exact)).astype(np.float64) / np.log(FARTHEST / exact)
    grown = np.minimum(np.floor(steps.astype(np.float32)).astype(np.int64), side - 1)
    return np.where(away > 0, side, 0).astype(np.int32) + np.where(far < exact, far, grown).astype(np.int32)


class RelativeBias(Module):
    """A number for each head and bucket. What the first layer makes of them is handed on to those that have none."""

    def __init__(self, hp: Hparams, il: int) -> None:
        self.n = hp.u32("attention.relative_buckets_count", least=4)
        self.weight = Weight(hp.n_head(il), self.n, required=not il)

    def __call__(self, g: GraphBuilder) -> Tensor:
        """F32 (n_tokens seen, n_tokens, n_head)"""
        if self.weight.tensor is None:
            found: Tensor = g.handed_on[BIAS]
            return found
        places = g.shared_input("pos_bucket_enc", GGMLType.I32, g.n_tokens * g.n_tokens, fill=self._fill)
        rows = ops.get_rows(self.weight.tensor, places)
        rows = ops.reshape(rows, rows.ne[0], g.n_tokens, g.n_tokens)
        bias = ops.cont(ops.permute(rows, 2, 0, 1, 3), name=f"{BIAS}-{self.il}")
        if not self.il:
            g.handed_on[BIAS] = bias
        return bias

    def _fill(self, ub: Ubatch, _: Any) -> NDArray[np.int32]:
        pos = ub.pos.astype(np.int64)
        return buckets(pos[None, :] - pos[:, None], self.n).reshape(-1)


class RelativeAttention(Attention):
    """Its matrix for the result is called attn_o."""

    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il, rope=None, scale=1.0)
        self.attn_o = self.attn_output
        del self.attn_output
        self.attn_rel_b = RelativeBias(hp, il)

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        q, k, v = self.project(g, x)
        return g.linear(self.attn_o, g.attend(self.il, q, k, v, scale=self.scale, bias=self.attn_rel_b(g)))


class T5MLP(Module):
    """down(relu(up(x))), or where there is a gate down(gelu(gate(x)) * up(x))."""

    def __init__(self, hp: Hparams, il: int) -> None:
        self.ffn_gate = Linear(hp.n_embd, hp.n_ff(il), required=False)
        self.ffn_up = Linear(hp.n_embd, hp.n_ff(il))
        self.ffn_down = Linear(hp.n_ff(il), hp.n_embd)

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        up = g.linear(self.ffn_up, x)
        if self.ffn_gate.weight.there:
            return g.linear(self.ffn_down, ops.glu(g.linear(self.ffn_gate, x), up, ops.GluOp.GEGLU))
        return g.linear(self.ffn_down, relu(up))


class Block(PreNormBlock):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il)
        self.attn = RelativeAttention(hp, il)
        self.ffn = T5MLP(hp, il)


class Model(Encoder):
    block = Block
    norm_name = "enc.output_norm"
    alike = False
    ignored = ("output.weight",)

    @property
    def blk(self) -> list[Any]:
        """The layers, which the file calls enc.blk."""
        found: list[Any] = vars(self)["enc.blk"]
        return found

    @blk.setter
    def blk(self, layers: list[Any]) -> None:
        vars(self)["enc.blk"] = layers
