"""jina-bert-v2: bert with ALiBi in place of positions, GELU in a gate, and perhaps norms of queries and keys
(llama.cpp: models/jina-bert-v2.cpp, bert.cpp)."""

from collections.abc import Iterator, Mapping
from typing import Any

from pyggml import ops
from pyggml.model.attention import Attention
from pyggml.model.encoder import Bert, PostNormBlock
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.linear import Linear
from pyggml.model.mlp import gelu
from pyggml.model.module import Module, Weight
from pyggml.model.norms import LayerNorm
from pyggml.model.pooling import Head
from pyggml.tensor import Tensor


class JinaMLP(Module):
    """down(gelu(gate(x)) * up(x)), where ffn_up may hold both, the gate first; or without a gate."""

    def __init__(self, hp: Hparams, il: int) -> None:
        self.n_ff = hp.n_ff(il)
        self.ffn_gate = Linear(hp.n_embd, self.n_ff, required=False)
        self.ffn_up = Linear(hp.n_embd, self.n_ff)
        self.ffn_down = Linear(self.n_ff, hp.n_embd)

    def wanted(self, tensors: Mapping[str, Any]) -> Iterator[Weight]:
        up = tensors.get(self.ffn_up.weight.name)
        if up is not None and up.ne[1] == 2 * self.n_ff:
            self.ffn_up.weight.ne = (self.ffn_up.weight.ne[0], 2 * self.n_ff)
            self.ffn_up.bias.ne = (2 * self.n_ff,)
        return super().wanted(tensors)

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        up = g.linear(self.ffn_up, x)
        if self.ffn_gate.weight.there:
            cur = ops.glu(g.linear(self.ffn_gate, x), up, ops.GluOp.GEGLU)
        else:
            cur = gelu(up) if up.ne[0] == self.n_ff else ops.glu(up, None, ops.GluOp.GEGLU)
        return g.linear(self.ffn_down, cur)


class Block(PostNormBlock):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il, twice=True)
        self.attn = Attention(hp, il, rope=None, qk_norm="row", norm=LayerNorm, norm_needed=False, max_bias=8.0)
        self.ffn = JinaMLP(hp, il)


class Model(Bert):
    block = Block
    types_needed = True

    def make_head(self, hp: Hparams) -> Head:
        return Head(hp, dense=True, n_dense=1)
