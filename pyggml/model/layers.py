"""The frame of a model: embeddings, blocks, the last norm, logits; and what a layer that remembers something says.

Owns the order of their nodes, which is llama.cpp's (llama-graph.cpp); knows no architecture's name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from pyggml import ops
from pyggml.errors import ModelError
from pyggml.memory import Need
from pyggml.model.graph import LOGITS, BuiltGraph, GraphBuilder, Wanted
from pyggml.model.hparams import Hparams
from pyggml.model.linear import Output
from pyggml.model.module import Module, Weight
from pyggml.model.norms import RMSNorm
from pyggml.model.pooling import Head
from pyggml.tensor import Tensor


class Embedding(Module):
    """A row for each token."""

    at_input = True

    def __init__(self, n_embd: int, n_vocab: int) -> None:
        self.weight = Weight(n_embd, n_vocab)

    def __call__(self, g: GraphBuilder) -> Tensor:
        """(n_embd, n_tokens)"""
        return g.rows(self.weight, self.il, "inp_embd")


class PositionEmbedding(Module):
    """A row for each position."""

    at_input = True

    def __init__(self, n_embd: int, n_ctx: int, *, required: bool = True) -> None:
        self.weight = Weight(n_embd, n_ctx, required=required)

    def __call__(self, g: GraphBuilder) -> Tensor:
        """(n_embd, n_tokens)"""
        return ops.get_rows(self.weight.value, g.positions, name="pos_embd")


class CausalLM(Module):
    """Token embeddings, blocks, a norm, logits. An architecture sets `block`, a class of (hp, number), and what differs.

    speaks         whether it has logits
    whole          graphs of this kind read all weights that a device must hold
    start_token    what an answer begins with where a text is encoded first, which `build` does if `wanted` says so; else None
    norm           the class of the last norm, which is called `norm_name`; None: there is none
    embed_scale    what token embeddings are multiplied by
    logit_scale    what logits are multiplied by
    output_bias    whether logits may have a bias
    alike          whether `build` can build some layers alone
    ignored        tensors that the file may hold and no node reads: heads for other uses
    logit_softcap  logits are softcap * tanh(logits / softcap); 0: as they are
    """

    speaks: ClassVar = True
    whole: ClassVar = LOGITS
    start_token: int | None = None
    norm_name = "output_norm"
    block: type[Any]
    output_norm: Any
    norm: Any = RMSNorm
    embed_scale = 1.0
    logit_scale = 1.0
    logit_softcap = 0.0
    output_bias = False
    ignored: tuple[str, ...] = ()
    alike = True

    def __init__(self, hp: Hparams, tensors: Mapping[str, Any]) -> None:
        """`tensors` are the file's, by name, with `ne`: their number of tokens counts. Raises ModelError."""
        if "token_embd.weight" not in tensors:
            raise ModelError("tensor token_embd.weight is missing")
        self.hp = hp
        self.n_vocab = int(tensors["token_embd.weight"].ne[1])
        self.token_embd = Embedding(hp.n_embd, self.n_vocab)
        if self.norm is not None:
            setattr(self, self.norm_name, self.norm.of(hp))
        self.output = Output(hp.n_embd, self.n_vocab, biased=self.output_bias) if self.speaks else None
        self.blk = [self.block(hp, il) for il in range(hp.n_layer)]
        self.head = self.make_head(hp)

    def make_head(self, hp: Hparams) -> Head:
        """What makes embeddings of the last norm's rows."""
        return Head(hp)

    def passed_over(self, tensors: Container[str]) -> Iterator[str]:
        """Layers behind the last, which predict further tokens for drafts (llama.cpp: n_layer_nextn)."""
        yield from self.ignored
        behind = tuple(f"blk.{il}." for il in range(self.hp.n_layer, self.hp.n_layer_all))
        if behind and isinstance(tensors, Mapping):
            yield from (name for name in tensors if name.startswith(behind))

    @property
    def encodes(self) -> bool:
        """Whether an encoder reads a text, which the rest answers."""
        return self.start_token is not None

    def graphs(self) -> tuple[Wanted, ...]:
        """Kinds of graphs that together read all weights."""
        return (self.whole,)

    def needs(self) -> list[Need]:
        """What the layers want to be remembered."""
        return [module.need() for module in self.modules() if isinstance(module, Remembers)]

    def embed(self, g: GraphBuilder) -> Tensor:
        cur = self.token_embd(g)
        return cur if self.embed_scale == 1.0 else ops.scale(cur, self.embed_scale, name="inp_scaled")

    def normed(self, g: GraphBuilder, x: Tensor) -> Tensor:
        """The last layer's result, ready for the matrix of logits; embeddings are made of it."""
        if self.norm is None:
            return x
        normed: Tensor = getattr(self, self.norm_name)(g, x)
        return normed

    def logits(self, g: GraphBuilder, x: Tensor) -> Tensor:
        """x (n_embd, n_outputs), normed -> (n_vocab, n_outputs), scaled and capped as the model wants it."""
        assert self.output is not None, "it has no logits"
        cur = g.linear(self.output, x)
        if self.logit_scale != 1.0:
            cur = ops.scale(cur, self.logit_scale, name="result_output")
        if self.logit_softcap:
            cur = ops.unary(ops.scale(cur, 1.0 / self.logit_softcap), ops.UnaryOp.TANH)
            cur = ops.scale(cur, self.logit_softcap, name="result_output")
        return cur

    def build(self, g: GraphBuilder, layers: Sequence[int] | None = None) -> BuiltGraph:
        """The graph of one micro-batch; of some `layers`, in ascending order, that stand for all (FewLayers)."""
        cur, ends = self.embed(g), []
        for il in range(len(self.blk)) if layers is None else layers:
            cur = g.steer(il, self.blk[il](g, cur))
            ends.append(cur)
        return g.finish(self.outcome(g, cur), ends)

    def outcome(self, g: GraphBuilder, x: Tensor) -> Tensor | None:
        """What is wanted of the last layer's result: logits, embeddings, or nothing."""
        if not g.n_outputs:
            return None
        cur = self.normed(g, x)
        return self.head(g, cur) if g.wanted.pooling else self.logits(g, cur)


class Remembers(Module, ABC):
    """A layer that wants a memory."""

    @abstractmethod
    def need(self) -> Need:
        """What it wants to be kept of each sequence."""
