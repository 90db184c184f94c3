"""The layers that models are made of: norms, gated feed-forward networks, the usual block, the usual model.

Owns their weights and the order of their nodes, which is llama.cpp's (llama-graph.cpp); knows no architecture's name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from pyggml import ops
from pyggml.errors import ModelError
from pyggml.memory import Need
from pyggml.model.graph import BuiltGraph, GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.linear import Linear, Output
from pyggml.model.module import Module, Weight
from pyggml.tensor import Tensor


class Embedding(Module):
    """A row for each token."""

    at_input = True

    def __init__(self, n_embd: int, n_vocab: int) -> None:
        self.weight = Weight(n_embd, n_vocab)

    def __call__(self, g: GraphBuilder) -> Tensor:
        """(n_embd, n_tokens)"""
        return g.rows(self.weight, self.il, "inp_embd")


class RMSNorm(Module):
    """x / sqrt(mean(x^2) + eps) * weight, of each row."""

    def __init__(self, n: int, eps: float) -> None:
        self.weight, self.eps = Weight(n), eps

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        return ops.mul(ops.rms_norm(x, self.eps), self.weight.value, name=self.title)

    @property
    def title(self) -> str:
        return "result_norm" if self.attribute == "output_norm" else self.label()


class LayerNorm(Module):
    """(x - mean) / sqrt(variance + eps) * weight, of each row, and a bias where the file has one."""

    def __init__(self, n: int, eps: float) -> None:
        self.weight, self.bias, self.eps = Weight(n), Weight(n, required=False), eps

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        y = ops.mul(ops.norm(x, self.eps), self.weight.value, name=self.label("_w"))
        return y if self.bias.tensor is None else ops.add(y, self.bias.tensor, name=self.label())


class GatedMLP(Module):
    """down(f(gate(x)) * up(x)), f as the GLU op's kind says (llama-graph.cpp: build_ffn)."""

    def __init__(self, n_embd: int, n_ff: int, kind: ops.GluOp = ops.GluOp.SWIGLU) -> None:
        self.ffn_gate = Linear(n_embd, n_ff, scale_last=True)
        self.ffn_up = Linear(n_embd, n_ff, scale_last=True)
        self.ffn_down = Linear(n_ff, n_embd, scale_last=True)
        self.kind = kind

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        up = g.linear(self.ffn_up, x)
        cur = ops.glu(g.linear(self.ffn_gate, x), up, self.kind, name=f"ffn_{self.kind.name.lower()}-{self.il}")
        return g.linear(self.ffn_down, cur)


class PreNormBlock(Module):
    """x += attn(attn_norm(x)); x += ffn(ffn_norm(x)). An architecture sets `attn` and `ffn`."""

    attn: Any
    ffn: Any

    def __init__(self, hp: Hparams, il: int) -> None:
        self.attn_norm = RMSNorm(hp.n_embd, hp.rms_eps)
        self.ffn_norm = RMSNorm(hp.n_embd, hp.rms_eps)

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        """(n_embd, n_tokens) -> the same; after the last layer only the outputs' columns."""
        cur, x = g.select_outputs(self.il, self.attn(g, self.attn_norm(g, x)), x)
        x = ops.add(cur, x, name=f"ffn_inp-{self.il}")
        return ops.add(self.ffn(g, self.ffn_norm(g, x)), x, name=f"l_out-{self.il}")


class CausalLM(Module):
    """Token embeddings, blocks, a norm, logits. An architecture sets `block`, a class of (hp, number)."""

    block: type[Any]

    def __init__(self, hp: Hparams, tensors: Mapping[str, Any]) -> None:
        """`tensors` are the file's, by name, with `ne`: their number of tokens counts. Raises ModelError."""
        if "token_embd.weight" not in tensors:
            raise ModelError("tensor token_embd.weight is missing")
        self.hp = hp
        self.n_vocab = int(tensors["token_embd.weight"].ne[1])
        self.token_embd = Embedding(hp.n_embd, self.n_vocab)
        self.output_norm = RMSNorm(hp.n_embd, hp.rms_eps)
        self.output = Output(hp.n_embd, self.n_vocab)
        self.blk = [self.block(hp, il) for il in range(hp.n_layer)]

    def needs(self) -> list[Need]:
        """What the layers want to be remembered."""
        return [module.need() for module in self.modules() if isinstance(module, Remembers)]

    def embed(self, g: GraphBuilder) -> Tensor:
        return self.token_embd(g)

    def logits(self, g: GraphBuilder, x: Tensor) -> Tensor:
        return g.linear(self.output, x)

    def build(self, g: GraphBuilder, layers: Sequence[int] | None = None) -> BuiltGraph:
        """The graph of one micro-batch; of some `layers`, in ascending order, that stand for all (FewLayers)."""
        cur, ends = self.embed(g), []
        for il in range(len(self.blk)) if layers is None else layers:
            cur = self.blk[il](g, cur)
            ends.append(cur)
        return g.finish(self.logits(g, self.output_norm(g, cur)) if g.n_outputs else None, ends)


class Remembers(Module, ABC):
    """A layer that wants a memory."""

    @abstractmethod
    def need(self) -> Need:
        """What it wants to be kept of each sequence."""
