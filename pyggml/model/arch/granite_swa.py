"""granite_swa: granite with attention sinks, and windows and positions in the layers that the file says
(llama.cpp: models/granite-swa.cpp)."""

from typing import Any

from pyggml import ops
from pyggml.model.arch import granite
from pyggml.model.attention import Attention
from pyggml.model.hparams import Hparams
from pyggml.model.mlp import FusedGatedMLP
from pyggml.model.rope import Rope


class Block(granite.Block):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il)
        if hp.n_expert and hp.expert.n_ff_shared:
            self.ffn.shared = FusedGatedMLP(hp.n_embd, hp.expert.n_ff_shared, suffix="_shexp")

    def attention(self, hp: Hparams, il: int) -> Any:
        has_key = hp.find("attention.rope_pattern")[1] is not None
        turned = not has_key or hp.flags("attention.rope_pattern", hp.n_layer_all)[il]
        rope = Rope(hp, ops.ROPE_NORMAL) if turned else None
        return Attention(hp, il, rope=rope, window=hp.windows.of(il, 0), sinks="must", scale=hp.attention_scale)


class Model(granite.Model):
    block = Block
