"""mamba2 (Mamba 2, Codestral Mamba): layers of Mamba 2, no attention (llama.cpp: models/mamba2.cpp)."""

from pyggml.model.blocks import MixerBlock
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.mamba import Mamba2


class Block(MixerBlock):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il)
        self.mixer = Mamba2(hp, il, conv_biased=True)


class Model(CausalLM):
    block = Block
