"""hrm_text: two stacks of layers, gone through by turns: the lower one some times, then the upper one, and all that again; each
round has keys and values of its own (llama.cpp: models/hrm-text.cpp)."""

from collections.abc import Mapping, Sequence
from typing import Any

from pyggml import ops
from pyggml.errors import ModelError
from pyggml.model.attention import Attention
from pyggml.model.graph import BuiltGraph, GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.linear import Linear
from pyggml.model.mlp import GatedMLP
from pyggml.model.module import Module, Weight
from pyggml.model.norms import PlainRMSNorm
from pyggml.model.rope import Rope
from pyggml.tensor import Tensor

Z_L = "hrm.z_l_init"
"""What the lower stack begins with."""


class SigmoidAttention(Attention):
    """What heads find is multiplied by sigmoids of a product."""

    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il, rope=Rope(hp, ops.ROPE_NEOX))
        self.attn_gate = Linear(hp.n_embd, self.head_v * self.n_head)

    def back(self, g: GraphBuilder, x: Tensor, cur: Tensor) -> Tensor:
        gate = ops.unary(g.linear(self.attn_gate, x), ops.UnaryOp.SIGMOID)
        return super().back(g, x, ops.mul(cur, gate))


class Block(Module):
    def __init__(self, hp: Hparams, il: int) -> None:
        self.norm = PlainRMSNorm.of(hp)
        self.attn = SigmoidAttention(hp, il)
        self.ffn = GatedMLP(hp.n_embd, hp.n_ff(il))

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        x = ops.add(self.attn(g, self.norm(g, x)), x, name=f"ffn_inp-{self.il}")
        return g.steer(self.il, ops.add(self.ffn(g, self.norm(g, x)), x, name=f"l_out-{self.il}"))


class Model(CausalLM):
    block, norm, alike = Block, PlainRMSNorm, False

    def __init__(self, hp: Hparams, tensors: Mapping[str, Any]) -> None:
        super().__init__(hp, tensors)
        self.n_each = hp.u32("hrm.layers_per_stack")
        self.rounds, self.lower = hp.u32("hrm.h_cycles"), hp.u32("hrm.l_cycles")
        if hp.n_layer != (wanted := self.n_each * self.rounds * (self.lower + 1)):
            raise ModelError(
                f"key {hp.architecture}.block_count is {hp.n_layer}, must be {wanted}: a layer for each round"
            )
        self.embed_scale = hp.f32("embedding_scale", 0.0, positive=False) or 1.0
        for il, block in enumerate(self.blk):
            upper = il // self.n_each % (self.lower + 1) == self.lower
            block.number = il % self.n_each + (self.n_each if upper else 0)
        setattr(self, Z_L, Weight(hp.n_embd, bare=True))

    def normed(self, g: GraphBuilder, x: Tensor) -> Tensor:
        """As it is: each stack ends with a norm."""
        return x

    def stack(self, g: GraphBuilder, x: Tensor, number: int, ends: list[Tensor]) -> Tensor:
        for block in self.blk[number * self.n_each : (number + 1) * self.n_each]:
            x = block(g, x)
            ends.append(x)
        return ops.rms_norm(x, self.hp.rms_eps)

    def build(self, g: GraphBuilder, layers: Sequence[int] | None = None) -> BuiltGraph:
        upper, lower, ends = self.embed(g), getattr(self, Z_L).value, list[Tensor]()
        for i in range(self.rounds):
            first = i * (self.lower + 1)
            for j in range(self.lower):
                lower = self.stack(g, ops.add(upper, lower), first + j, ends)
            upper = self.stack(g, ops.add(upper, lower), first + self.lower, ends)
        (cur,) = g.select_outputs(self.hp.n_layer - 1, upper)
        return g.finish(self.outcome(g, cur), ends)
