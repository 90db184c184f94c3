"""maple: norms of each head of queries and keys; windows, and positions, in the layers that the file says; experts whose gates
are cut off above a limit (llama.cpp: models/maple.cpp)."""

from pyggml import ops
from pyggml.model.attention import Attention
from pyggml.model.blocks import PreNormBlock
from pyggml.model.experts import Experts
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.rope import Rope


class Block(PreNormBlock):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il)
        window = hp.windows.of(il, 0)
        rope = Rope.windowed(hp, ops.ROPE_NEOX, window) if window else None
        self.attn = Attention(hp, il, rope=rope, qk_norm="head", window=window)
        limit = hp.expert.limits[il]
        kind = ops.GluOp.SWIGLU_CLAMP if limit else ops.GluOp.SWIGLU
        self.ffn = Experts.of(hp, il, gating="softmax", renormalise=True, scale=1.0, kind=kind, limit=limit)


class Model(CausalLM):
    block = Block
