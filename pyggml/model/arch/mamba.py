"""mamba (Mamba, Falcon Mamba): layers of the first Mamba, no attention (llama.cpp: models/mamba.cpp)."""

from pyggml.model.blocks import MixerBlock
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.mamba import Mamba


class Block(MixerBlock):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il)
        self.mixer = Mamba(hp, il)


class Model(CausalLM):
    block = Block
