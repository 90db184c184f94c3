"""laguna: norms of each head of queries and keys, a gate of what attention finds, windows in three of four layers, whose
positions are not scaled; experts behind the first layers, and one that every token uses (llama.cpp: models/laguna.cpp)."""

from pyggml import ops
from pyggml.model.blocks import PreNormBlock
from pyggml.model.experts import Experts, ExpertsAndShared
from pyggml.model.gated_attention import AttentionAndGate, softplus
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.mlp import GatedMLP
from pyggml.model.rope import Rope


class Block(PreNormBlock):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il)
        window = hp.windows.of(il, 4, dense_first=True)
        rope = Rope.windowed(hp, ops.ROPE_NEOX, window, scale=1.0, scaled=False)
        self.attn = AttentionAndGate(hp, il, rope=rope, qk_norm="head", window=window, gate=softplus)
        if il < hp.expert.n_dense:
            self.ffn = GatedMLP(hp.n_embd, hp.n_ff(il))
            return
        experts = Experts.of(hp, il, bias=True, gating=hp.expert.gating or "sigmoid")
        self.ffn = ExpertsAndShared(
            hp, experts, hp.expert.n_ff_shared or hp.expert.n_ff(il) * (hp.expert.n_shared or 1)
        )


class Model(CausalLM):
    block = Block
