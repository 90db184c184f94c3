"""lfm2 (LFM 2): short convolutions between two gates, and attention with norms of queries and keys; the last norm is called
token_embd_norm (llama.cpp: models/lfm2.cpp)."""

from collections.abc import Mapping
from typing import Any

from pyggml import ops
from pyggml.errors import ModelError
from pyggml.model.attention import Attention
from pyggml.model.blocks import PreNormBlock
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.mlp import GatedMLP
from pyggml.model.pooling import Head
from pyggml.model.rope import Rope
from pyggml.model.short_convolution import ShortConvolution


class Block(PreNormBlock):
    """The feed-forward network is the subclass's to change."""

    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il)
        if hp.has_attention(il):
            rope = Rope(hp, ops.ROPE_NEOX)
            self.attn = Attention(hp, il, rope=rope, qk_norm="head", window=self.window(hp))
        else:
            self.attn = ShortConvolution(hp, il)
        self.ffn = self.network(hp, il)

    def window(self, hp: Hparams) -> int | None:
        return hp.windows.size or None

    def network(self, hp: Hparams, il: int) -> object:
        return GatedMLP(hp.n_embd, hp.n_ff(il))


class Model(CausalLM):
    block = Block
    norm_name = "token_embd_norm"

    def make_head(self, hp: Hparams) -> Head:
        return Head(hp, projected=True, n_projected=hp.pooled.n_out)

    def __init__(self, hp: Hparams, tensors: Mapping[str, Any]) -> None:
        if not hp.boolean("attention.causal", True):
            raise ModelError(f"key {hp.architecture}.attention.causal is false: only text that goes on is computed")
        super().__init__(hp, tensors)
