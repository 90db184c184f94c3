"""nanbeige: llama whose layers may be gone through several times, with a norm after each round; each round has keys and values of
its own (llama.cpp: models/nanbeige.cpp)."""

from collections.abc import Mapping, Sequence
from typing import Any

from pyggml import ops
from pyggml.model.attention import Attention
from pyggml.model.blocks import PreNormBlock
from pyggml.model.graph import BuiltGraph, GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.mlp import GatedMLP
from pyggml.model.rope import Rope


class Block(PreNormBlock):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il)
        self.attn = Attention(hp, il, rope=Rope(hp, ops.ROPE_NORMAL), scale=hp.attention_scale)
        self.ffn = GatedMLP(hp.n_embd, hp.n_ff(il))


class Model(CausalLM):
    block = Block

    def __init__(self, hp: Hparams, tensors: Mapping[str, Any]) -> None:
        self.n_each, rounds = hp.n_layer, hp.u32("num_loops", 1)
        hp.go_round(rounds)
        super().__init__(hp, tensors)
        for il, block in enumerate(self.blk):
            block.number = il % self.n_each
        self.alike = rounds == 1
        self.norm_between = not hp.boolean("skip_loop_final_norm", False)

    def build(self, g: GraphBuilder, layers: Sequence[int] | None = None) -> BuiltGraph:
        if self.alike:
            return super().build(g, layers)
        cur, ends = self.embed(g), []
        for il, block in enumerate(self.blk):
            cur = g.steer(il, block(g, cur))
            ends.append(cur)
            if (il + 1) % self.n_each == 0 and il + 1 < len(self.blk) and self.norm_between:
                cur = self.output_norm(g, cur)
        return g.finish(self.outcome(g, cur), ends)
