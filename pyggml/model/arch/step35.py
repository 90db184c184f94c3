"""step35 (Step 3.5): windows with heads and positions of their own in the layers that the file says, half of a head turned in
the others; norms of queries and keys and gates of heads where the file has them; experts where it has a router, and one
that every token uses, with limits for each layer (llama.cpp: models/step35.cpp)."""

from pyggml import ops
from pyggml.model.blocks import PreNormBlock
from pyggml.model.experts import Experts, ExpertsAndShared
from pyggml.model.gated_attention import AttentionAndGate
from pyggml.model.hparams import Hparams
from pyggml.model.mlp import GatedMLP
from pyggml.model.module import Module
from pyggml.model.rope import Rope
from pyggml.model.routed import RoutedLM


class Block(PreNormBlock):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il)
        window = hp.windows.of(il, 0)
        if window:
            rope = Rope.windowed(hp, ops.ROPE_NEOX, window, base=10000.0, scale=1.0, factors="none")
        else:
            most = max(hp.windows.n_rot if hp.windows.of(i, 0) else hp.n_rot // 2 for i in range(hp.n_layer))
            rope = Rope(hp, ops.ROPE_NEOX, n_rot=hp.n_rot // 2, n_factors=most // 2)
        self.attn = AttentionAndGate(
            hp, il, rope=rope, window=window, qk_norm="head", norm_needed=False, gate_needed=False
        )


class Model(RoutedLM):
    block = Block

    def experts(self, hp: Hparams, il: int) -> Module:
        keys = hp.expert
        gating = keys.gating or "sigmoid"
        experts = Experts.of(hp, il, bias=True, gating=gating, limit=keys.limits[il])
        return ExpertsAndShared(hp, experts, keys.n_ff_shared, limit=keys.limits_shared[il])

    def dense(self, hp: Hparams, il: int) -> Module:
        return GatedMLP(hp.n_embd, hp.n_ff(il), limit=hp.expert.limits_shared[il])
