"""granitehybrid (Granite 4 H): granite with layers of Mamba 2 where a layer has no heads (llama.cpp: models/granite-hybrid.cpp)."""

from collections.abc import Mapping
from typing import Any

from pyggml.model.arch.granite import Block as Base
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.mamba import Mamba2


class Block(Base):
    def attention(self, hp: Hparams, il: int) -> Any:
        return super().attention(hp, il) if hp.has_attention(il) else Mamba2(hp, il)


class Model(CausalLM):
    block = Block

    def __init__(self, hp: Hparams, tensors: Mapping[str, Any]) -> None:
        super().__init__(hp, tensors)
        self.embed_scale = hp.f32("embedding_scale", 0.0, positive=False) or 1.0
        self.logit_scale = 1.0 / (hp.f32("logit_scale", 0.0, positive=False) or 1.0)
