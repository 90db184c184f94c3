"""t5encoder: T5's first half. Scores have a bias by how far tokens are apart, in few buckets, and no scale; RMS norms, and a
feed-forward network with ReLU, or with GELU in a gate (llama.cpp: models/t5encoder.cpp, t5.cpp)."""

from typing import Any

from pyggml.model.blocks import PreNormBlock
from pyggml.model.encoder import Encoder
from pyggml.model.hparams import Hparams
from pyggml.model.relative_attention import T5MLP, RelativeAttention


class Block(PreNormBlock):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il)
        self.attn = RelativeAttention(hp, il)
        self.ffn = T5MLP(hp, il)


class Model(Encoder):
    block = Block
    norm_name = "enc.output_norm"
    alike = False
    ignored = ("output.weight",)

    @property
    def blk(self) -> list[Any]:
        """The layers, which the file calls enc.blk."""
        found: list[Any] = vars(self)["enc.blk"]
        return found

    @blk.setter
    def blk(self, layers: list[Any]) -> None:
        vars(self)["enc.blk"] = layers
