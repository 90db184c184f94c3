"""glm-dsa (GLM-5): deepseek32 with other rotations of the indexer, whose choice may count for several layers
(llama.cpp: models/glm-dsa.cpp)."""

from pyggml import ops
from pyggml.model.arch import deepseek32
from pyggml.model.hparams import Hparams

LONG = 1048576
"""Tokens of the context of models (5.2) in which some layers have no indexer."""


class Block(deepseek32.Block):
    mode, eps = ops.ROPE_NORMAL, 0.0

    @staticmethod
    def multiplier(hp: Hparams) -> float:
        return 0.0

    @staticmethod
    def chooses(hp: Hparams, il: int) -> bool:
        value = hp.find("attention.indexer.types")[1]
        if value is None:
            return hp.n_ctx_train < LONG or il < 2 or il % 4 == 2
        if isinstance(value, int):
            return value != 0
        return hp.each_flag("attention.indexer.types", hp.n_layer)[il]


class Model(deepseek32.Model):
    block = Block
