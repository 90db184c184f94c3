"""afmoe (Trinity): norms before and behind, and of each head of queries and keys; a gate of what attention finds; a window,
and positions, in three of four layers; experts behind the first layers (llama.cpp: models/afmoe.cpp)."""

from pyggml import ops
from pyggml.model.arch import gemma
from pyggml.model.blocks import Block as Base
from pyggml.model.experts import Experts, ExpertsAndShared
from pyggml.model.gated_attention import AttentionAndGate
from pyggml.model.hparams import Hparams
from pyggml.model.mlp import GatedMLP
from pyggml.model.rope import Rope


class Block(Base):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il, post=True)
        window = hp.windows.of(il, 4)
        rope = Rope.windowed(hp, ops.ROPE_NEOX, window) if (il + 1) % 4 else None
        self.attn = AttentionAndGate(hp, il, rope=rope, qk_norm="head", window=window)
        if il < hp.expert.n_dense:
            self.ffn = GatedMLP(hp.n_embd, hp.n_ff(il))
            return
        experts = Experts.of(hp, il, bias=True, gating=hp.expert.gating or "sigmoid")
        n_ff_shared = hp.expert.n_ff(il) * hp.expert.n_shared
        self.ffn = ExpertsAndShared(hp, experts, n_ff_shared) if n_ff_shared else experts


class Model(gemma.Model):
    block = Block
