"""modern-bert: rotary positions, norms without biases before attention and feed-forward network, but the first, GELU in a gate
that lies with the other half, and in most layers a window; maybe with a head that scores tokens (llama.cpp:
models/modern-bert.cpp)."""

from collections.abc import Mapping, Sequence
from typing import Any

from pyggml import ops
from pyggml.errors import ModelError
from pyggml.model.attention import Attention
from pyggml.model.blocks import Block as Base
from pyggml.model.decision import QUESTIONS, DecisionBlock, QuestionTypes, Scorer, n_deciding
from pyggml.model.encoder import Encoder
from pyggml.model.graph import BuiltGraph, GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.mlp import FusedGatedMLP
from pyggml.model.norms import LayerNorm
from pyggml.model.pooling import Head
from pyggml.model.rope import Rope
from pyggml.tensor import Tensor

TANH = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu_accurate", "gelu_python_tanh", "geglu")
KINDS = dict.fromkeys(TANH, ops.GluOp.GEGLU) | dict.fromkeys(("silu", "swish", "swiglu"), ops.GluOp.SWIGLU)


class Block(Base):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il, norm=LayerNorm)
        if not il:
            self.attn_norm = LayerNorm.of(hp, required=False)
        window = hp.windows.of(il, 3, dense_first=True)
        self.attn = Attention(hp, il, rope=Rope.windowed(hp, ops.ROPE_NEOX, window), window=window, symmetric=True)
        kind = KINDS.get(str(hp.find("hidden_activation")[1]), ops.GluOp.GEGLU_ERF)
        self.ffn = FusedGatedMLP(hp.n_embd, hp.n_ff(il), kind)


class Model(Encoder):
    block = Block
    norm = LayerNorm

    def __init__(self, hp: Hparams, tensors: Mapping[str, Any]) -> None:
        super().__init__(hp, tensors)
        self.token_embd_norm = LayerNorm.of(hp)
        self.n_encoding = hp.n_layer - n_deciding(hp)
        self.decides = self.n_encoding < hp.n_layer
        if self.decides:
            if hp.pooled.n_types != QUESTIONS:
                needs = f"a head that decides has {QUESTIONS} kinds of questions"
                raise ModelError(f"key tokenizer.ggml.token_type_count is {hp.pooled.n_types}: {needs}")
            self.blk[self.n_encoding :] = [DecisionBlock(hp, il) for il in range(self.n_encoding, hp.n_layer)]
            self.token_types, self.scorer, self.alike = QuestionTypes(hp.n_embd), Scorer(hp), False

    def build(self, g: GraphBuilder, layers: Sequence[int] | None = None) -> BuiltGraph:
        if not self.decides:
            return super().build(g, layers)
        encoded, ends, scores = self.embed(g), [], None
        for il in range(self.n_encoding):
            encoded = g.steer(il, self.blk[il](g, encoded))
            ends.append(encoded)
        encoded = self.normed(g, encoded)
        for kind in range(QUESTIONS):
            cur = self.token_types(encoded, kind)
            for il in range(self.n_encoding, len(self.blk)):
                cur = self.blk[il](g, cur)
            one = self.scorer(g, cur)
            scores = one if scores is None else ops.concat(scores, one, 0)
        return g.finish(self.head(g, scores) if scores is not None and g.n_outputs else None, ends)

    def make_head(self, hp: Hparams) -> Head:
        if n_deciding(hp):
            return Head(hp)
        return Head(hp, dense=True, out=True, activation="gelu", ranked="mean")

    def embed(self, g: GraphBuilder) -> Tensor:
        return self.token_embd_norm(g, super().embed(g))
