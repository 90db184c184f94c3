"""rwkv7 (RWKV 7, Goose): rwkv6 with another time mix, and a channel mix without a gate (llama.cpp: models/rwkv7.cpp)."""

from pyggml.model.arch.rwkv6 import Model as BaseModel
from pyggml.model.hparams import Hparams
from pyggml.model.rwkv import ChannelMix, RWKVBlock, TimeMix7


class Block(RWKVBlock):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il)
        self.time_mix, self.channel_mix = TimeMix7(hp, il), ChannelMix(hp, il, received=False)


class Model(BaseModel):
    block = Block
