"""qwen35moe: qwen35 with experts, and one that every token uses, behind a gate (llama.cpp: models/qwen35moe.cpp)."""

from pyggml.model.arch.qwen35 import Block as Base
from pyggml.model.experts import Experts, ExpertsAndShared
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM


class Block(Base):
    def network(self, hp: Hparams, il: int) -> object:
        n_ff = hp.expert.n_ff(il) or hp.n_ff(il) // hp.n_expert_used
        experts = Experts.of(hp, il, n_ff, gating="softmax", renormalise=True)
        return ExpertsAndShared(hp, experts, hp.expert.n_ff_shared or hp.n_ff(il), gated=True)


class Model(CausalLM):
    block = Block
