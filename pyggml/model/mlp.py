"""Feed-forward networks that every token goes through (llama-graph.cpp: build_ffn); knows no architecture's name."""

from __future__ import annotations

from collections.abc import Callable

from pyggml import ops
from pyggml.model.graph import GraphBuilder
from pyggml.model.linear import Linear
from pyggml.model.module import Module
from pyggml.tensor import Tensor

Activation = Callable[[Tensor], Tensor]


def silu(x: Tensor) -> Tensor:
    """x / (1 + exp(-x)), element by element."""
    return ops.unary(x, ops.UnaryOp.SILU)


def gelu(x: Tensor) -> Tensor:
    """GELU by tanh, element by element (ggml's GGML_UNARY_OP_GELU)."""
    return ops.unary(x, ops.UnaryOp.GELU)


def relu(x: Tensor) -> Tensor:
    """max(x, 0), element by element."""
    return ops.unary(x, ops.UnaryOp.RELU)


def relu_squared(x: Tensor) -> Tensor:
    """max(x, 0) squared, element by element."""
    return ops.sqr(relu(x))


class GatedMLP(Module):
    """down(f(gate(x)) * up(x)), f as the GLU op's kind says.

    suffix  what the matrices' names end in: "_shexp" for experts that every token uses
    limit   with a number, f(gate) is at most that, and up between minus that and that; of SWIGLU_OAI with its `alpha`
    """

    def __init__(
        self,
        n_embd: int,
        n_ff: int,
        kind: ops.GluOp = ops.GluOp.SWIGLU,
        *,
        suffix: str = "",
        limit: float = 0.0,
        alpha: float = 0.0,
    ) -> None:
        self.suffix, self.kind, self.limit, self.alpha = suffix, kind, limit, alpha
        for name, n_in, n_out in (("gate", n_embd, n_ff), ("up", n_embd, n_ff), ("down", n_ff, n_embd)):
            setattr(self, f"ffn_{name}{suffix}", Linear(n_in, n_out, scale_last=True))

    def matrix(self, name: str) -> Linear:
        """gate, up or down."""
        found: Linear = getattr(self, f"ffn_{name}{self.suffix}")
        return found

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        up = g.linear(self.matrix("up"), x)
        gate = g.linear(self.matrix("gate"), x)
        if self.limit and self.kind == ops.GluOp.SWIGLU:
            up = ops.clamp(up, -self.limit, self.limit)
            cur = ops.mul(ops.clamp(silu(gate), float("-inf"), self.limit), up)
        else:
            name = f"ffn_{self.kind.name.lower()}{self.suffix}-{self.il}"
            cur = ops.glu(gate, up, self.kind, alpha=self.alpha, limit=self.limit, name=name)
        return g.linear(self.matrix("down"), cur)


class FusedGatedMLP(Module):
    """down(f(first half of up(x)) * second half), f as the GLU op's kind says; `swapped`: f of the second half; `suffix` as
    in GatedMLP."""

    def __init__(
        self,
        n_embd: int,
        n_ff: int,
        kind: ops.GluOp = ops.GluOp.SWIGLU,
        *,
        swapped: bool = False,
        suffix: str = "",
    ) -> None:
        self.kind, self.swapped, self.suffix = kind, swapped, suffix
        setattr(self, f"ffn_up{suffix}", Linear(n_embd, 2 * n_ff, scale_last=True))
        setattr(self, f"ffn_down{suffix}", Linear(n_ff, n_embd, scale_last=True))

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        up: Linear = getattr(self, f"ffn_up{self.suffix}")
        down: Linear = getattr(self, f"ffn_down{self.suffix}")
        return g.linear(down, ops.glu(g.linear(up, x), None, self.kind, self.swapped))


class MLP(Module):
    """down(f(up(x))); `suffix` as in GatedMLP."""

    def __init__(self, n_embd: int, n_ff: int, activation: Activation = gelu, *, suffix: str = "") -> None:
        self.suffix, self.activation = suffix, activation
        setattr(self, f"ffn_up{suffix}", Linear(n_embd, n_ff, scale_last=True))
        setattr(self, f"ffn_down{suffix}", Linear(n_ff, n_embd, scale_last=True))

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        up: Linear = getattr(self, f"ffn_up{self.suffix}")
        down: Linear = getattr(self, f"ffn_down{self.suffix}")
        return g.linear(down, self.activation(g.linear(up, x)))
