"""mimo2 (MiMo V2): windows with positions of their own in the layers that the file says, attention sinks where it has them,
a factor of what attention finds; experts where it has a router (llama.cpp: models/mimo2.cpp)."""

from pyggml import ops
from pyggml.model.attention import Attention
from pyggml.model.blocks import PreNormBlock
from pyggml.model.experts import Experts
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.module import Module
from pyggml.model.rope import Rope
from pyggml.model.routed import RoutedLM
from pyggml.tensor import Tensor


class Block(PreNormBlock):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il)
        window = hp.windows.of(il, 0)
        rope = Rope.windowed(hp, ops.ROPE_NEOX, window, base=10000.0, scale=1.0)
        self.attn = ScaledAttention(hp, il, rope=rope, window=window, sinks="may")
        self.attn.factor = hp.f32("attention.value_scale", 0.0, positive=False) or 1.0


class ScaledAttention(Attention):
    """What it gives is multiplied by `factor`."""

    factor = 1.0

    def back(self, g: GraphBuilder, x: Tensor, cur: Tensor) -> Tensor:
        cur = super().back(g, x, cur)
        return cur if self.factor == 1.0 else ops.scale(cur, self.factor, name=f"attn_out_scaled-{self.il}")


class Model(RoutedLM):
    block = Block

    def experts(self, hp: Hparams, il: int) -> Module:
        return Experts.of(hp, il, gating="sigmoid", bias=True, renormalise=True, scale=1.0)
