"""qwen3tts (the talker of Qwen3-TTS): qwen3vl whose logits are of 3072 codes; tokens before them cannot come out
(llama.cpp: models/qwen3vl.cpp)."""

from collections.abc import Mapping
from typing import Any

from pyggml import ops
from pyggml.dtypes import GGMLType
from pyggml.model.arch.qwen3vl import Model as Text
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.linear import Output
from pyggml.tensor import Tensor

N_CODES = 3072


class Model(Text):
    def __init__(self, hp: Hparams, tensors: Mapping[str, Any]) -> None:
        super().__init__(hp, tensors)
        self.output = Output(hp.n_embd, N_CODES)

    def logits(self, g: GraphBuilder, x: Tensor) -> Tensor:
        codes = super().logits(g, x)
        if (rest := self.n_vocab - N_CODES) <= 0:
            return codes
        none = ops.fill(Tensor(GGMLType.F32, (rest, x.ne[1])), float("-inf"))
        return ops.concat(none, codes, 0, name="result_output")
