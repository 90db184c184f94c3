"""mpt: layer norms, ALiBi, queries, keys and values are cut; some with norms of queries and keys as whole rows, an embedding for
each position, and numbers that activations are divided by (llama.cpp: models/mpt.cpp)."""

from collections.abc import Mapping
from typing import Any

from pyggml import ops
from pyggml.model.attention import Attention
from pyggml.model.blocks import Block as Base
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM, PositionEmbedding
from pyggml.model.mlp import MLP, gelu
from pyggml.model.module import Module, Weight
from pyggml.model.norms import LayerNorm
from pyggml.tensor import Tensor


class Block(Base):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il, norm=LayerNorm)
        self.attn = Attention(
            hp,
            il,
            rope=None,
            qk_norm="row",
            norm=LayerNorm,
            norm_needed=False,
            max_bias=hp.max_bias,
            clamp=hp.f32("attention.clamp_kqv", 0.0, positive=False),
        )
        self.ffn = ScaledMLP(hp.n_embd, hp.n_ff(il))


class ScaledMLP(MLP):
    """Divides the activations, where the file says by what."""

    def __init__(self, n_embd: int, n_ff: int) -> None:
        super().__init__(n_embd, n_ff, self.divided)
        setattr(self, "ffn.act", Scales(n_ff))

    def divided(self, x: Tensor) -> Tensor:
        scales = getattr(self, "ffn.act").scales.tensor
        return gelu(x) if scales is None else ops.div(gelu(x), scales)


class Scales(Module):
    def __init__(self, n: int) -> None:
        self.scales = Weight(n, required=False)


class Model(CausalLM):
    block, norm = Block, LayerNorm

    def __init__(self, hp: Hparams, tensors: Mapping[str, Any]) -> None:
        super().__init__(hp, tensors)
        self.position_embd = PositionEmbedding(hp.n_embd, hp.n_ctx_train, required=False)

    def embed(self, g: GraphBuilder) -> Tensor:
        cur = self.token_embd(g)
        return ops.add(cur, self.position_embd(g)) if self.position_embd.weight.there else cur
