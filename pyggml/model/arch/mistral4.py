"""mistral4 (Mistral Small 4): deepseek2, but for how yarn counts (llama.cpp: models/mistral4.cpp)."""

from pyggml.model.arch import deepseek2
from pyggml.model.hparams import Hparams
from pyggml.model.rope_options import RopeScaling


class Block(deepseek2.Block):
    @staticmethod
    def scaling(hp: Hparams, multiplier: float) -> RopeScaling:
        return hp.scaled_rope(log_multiplier=multiplier)


class Model(deepseek2.Model):
    block = Block
