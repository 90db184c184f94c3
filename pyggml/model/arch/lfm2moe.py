"""lfm2moe: lfm2 with experts behind the first layers (llama.cpp: models/lfm2moe.cpp)."""

from pyggml.model.arch.lfm2 import Block as Base
from pyggml.model.arch.lfm2 import Model as BaseModel
from pyggml.model.experts import Experts
from pyggml.model.hparams import Hparams


class Block(Base):
    def window(self, hp: Hparams) -> int | None:
        return None

    def network(self, hp: Hparams, il: int) -> object:
        if il < hp.expert.n_dense:
            return super().network(hp, il)
        return Experts.of(hp, il, bias=True, renormalise=True)


class Model(BaseModel):
    block = Block
