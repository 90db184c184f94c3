"""gemma-embedding2: gemma4's block over all tokens, with a window to both sides in most layers; embeddings for each layer come of
the tokens' alone, and a matrix at the end makes those of the tokens (llama.cpp: models/gemma-embedding2.cpp)."""

import math
from collections.abc import Mapping
from typing import Any

from pyggml import ops
from pyggml.model import blocks
from pyggml.model.arch import gemma4
from pyggml.model.attention import Attention
from pyggml.model.encoder import Encoder
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.per_layer import NAME, PerLayerInput, PerLayerProjection
from pyggml.model.pooling import Head
from pyggml.model.rope import Rope
from pyggml.tensor import Tensor


class Block(gemma4.Block):
    def __init__(self, hp: Hparams, il: int) -> None:
        blocks.Block.__init__(self, hp, il, post=True)
        window = hp.windows.of(il, 6)
        self.attn = Attention(
            hp, il, rope=Rope.windowed(hp, ops.ROPE_NEOX, window), qk_norm="head", v_norm=True, window=window,
            symmetric=True, scale=1.0,
        )  # fmt: skip
        self.ffn = gemma4.Dense(hp, il)
        self.per_layer = PerLayerInput(hp, hp.u32("embedding_length_per_layer_input"))
        self.layer_output_scale = gemma4.OutputScale()


class Model(Encoder):
    block = Block

    def __init__(self, hp: Hparams, tensors: Mapping[str, Any]) -> None:
        super().__init__(hp, tensors)
        self.embed_scale = math.sqrt(hp.n_embd)
        self.blk[0].projection = PerLayerProjection(hp, hp.u32("embedding_length_per_layer_input"))

    def make_head(self, hp: Hparams) -> Head:
        return Head(hp, of_tokens="output")

    def embed(self, g: GraphBuilder) -> Tensor:
        x = super().embed(g)
        g.handed_on[NAME] = self.blk[0].projection(g, None, x)
        return x
