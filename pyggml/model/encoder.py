"""The frames of models that keep nothing and make embeddings: tokens see those behind them too.

Owns their inputs and the order of their nodes (llama.cpp: models/bert.cpp); knows no architecture's name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pyggml import ops
from pyggml.errors import ModelError, UnsupportedError
from pyggml.memory import Need
from pyggml.model.graph import BuiltGraph, GraphBuilder, Wanted
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM, PositionEmbedding
from pyggml.model.linear import Output
from pyggml.model.module import Module, Weight
from pyggml.model.norms import LayerNorm
from pyggml.model.pooling import Head
from pyggml.tensor import Tensor


class Encoder(CausalLM):
    """Token embeddings, blocks, a norm where there is one, pooling. What differs is said as for CausalLM."""

    speaks: ClassVar = False
    whole: ClassVar = Wanted("rank", causal=False)

    def causal(self) -> bool:
        """Whether tokens see those before them alone; llama_context::encode never lets them."""
        return False

    def needs(self) -> list[Need]:
        """Nothing."""
        return []


class Denoiser(Encoder):
    """Logits of all tokens, each of which sees all others: for programs that fill in masked tokens step by step (diffusion)."""

    whole: ClassVar = Wanted(causal=False)

    def __init__(self, hp: Hparams, tensors: Mapping[str, Any]) -> None:
        super().__init__(hp, tensors)
        self.output = Output(hp.n_embd, self.n_vocab, biased=self.output_bias)

    def build(self, g: GraphBuilder, layers: Sequence[int] | None = None) -> BuiltGraph:
        if g.wanted.pooling not in ("", "none"):
            raise UnsupportedError(
                f"pooling {g.wanted.pooling}: a {self.hp.architecture} model has logits and no embeddings"
            )
        g.wanted = g.wanted._replace(pooling="")
        return super().build(g, layers)


class TokenTypes(Module):
    """A row for each kind of token; all tokens are of the first."""

    at_input = True

    def __init__(self, n_embd: int, n_types: int, *, required: bool = False) -> None:
        self.weight = Weight(n_embd, n_types, required=required)

    def __call__(self, x: Tensor) -> Tensor:
        if self.weight.tensor is None:
            return x
        return ops.add(x, ops.view(self.weight.tensor, (x.ne[0],)), name="inp_types")


class Bert(Encoder):
    """With kinds of tokens, positions that are learned if `position_embd`, and a norm of their sum; no norm at the end."""

    norm = None
    positions: ClassVar = False
    types_needed: ClassVar = False

    def __init__(self, hp: Hparams, tensors: Mapping[str, Any]) -> None:
        super().__init__(hp, tensors)
        if not hp.pooled.n_types:
            raise ModelError("key tokenizer.ggml.token_type_count is missing")
        self.token_types = TokenTypes(hp.n_embd, hp.pooled.n_types, required=self.types_needed)
        self.position_embd = PositionEmbedding(hp.n_embd, hp.n_ctx_train) if self.positions else None
        self.token_embd_norm = LayerNorm.of(hp)

    def make_head(self, hp: Hparams) -> Head:
        return Head(hp)

    def embed(self, g: GraphBuilder) -> Tensor:
        cur = self.token_types(self.token_embd(g))
        if self.position_embd is not None:
            cur = ops.add(self.position_embd(g), cur, name="inp_pos_embd")
        return self.token_embd_norm(g, cur)


class PostNormBlock(Module):
    """x = norm(attn(x) + x); x = norm(ffn(x) + x). An architecture sets `attn` and `ffn`.

    twice  whether the file may have a second norm of what attention gave, with its input added again (attn_norm_2)
    """

    attn: Any
    ffn: Any

    def __init__(self, hp: Hparams, il: int, *, twice: bool = False) -> None:
        self.attn_output_norm = LayerNorm.of(hp)
        self.attn_norm_2 = LayerNorm.of(hp, required=False) if twice else None
        self.layer_output_norm = LayerNorm.of(hp)

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        """(n_embd, n_tokens) -> the same."""
        cur = self.attn_output_norm(g, ops.add(self.attn(g, x), x))
        if self.attn_norm_2 is not None and self.attn_norm_2.weight.there:
            cur = self.attn_norm_2(g, ops.add(cur, x))
        return self.layer_output_norm(g, ops.add(self.ffn(g, cur), cur, name=f"l_out-{self.il}"))
