"""rwkv6 (RWKV 6, Finch): time mix and channel mix, a norm behind the embeddings (llama.cpp: models/rwkv6.cpp)."""

from collections.abc import Mapping
from typing import Any

from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.norms import LayerNorm
from pyggml.model.rwkv import ChannelMix, RWKVBlock, TimeMix6
from pyggml.tensor import Tensor


class Block(RWKVBlock):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il)
        self.time_mix, self.channel_mix = TimeMix6(hp, il), ChannelMix(hp, il, received=True)
        period = hp.u32("rescale_every_n_layers", 0, least=0)
        self.halved = period > 0 and (il + 1) % period == 0


class Model(CausalLM):
    block: type[Any] = Block
    norm = LayerNorm

    def __init__(self, hp: Hparams, tensors: Mapping[str, Any]) -> None:
        super().__init__(hp, tensors)
        self.token_embd_norm = LayerNorm.of(hp)

    def embed(self, g: GraphBuilder) -> Tensor:
        return self.token_embd_norm(g, self.token_embd(g))
