"""bailingmoe2 (Ling 2, Ring 2): norms of each head of queries and keys; experts behind the first layers, and some that every
token uses (llama.cpp: models/bailingmoe2.cpp)."""

from pyggml import ops
from pyggml.model.attention import Attention
from pyggml.model.blocks import PreNormBlock
from pyggml.model.experts import Experts, ExpertsAndShared
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.mlp import GatedMLP
from pyggml.model.rope import Rope


class Block(PreNormBlock):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il)
        self.attn = Attention(hp, il, rope=Rope(hp, ops.ROPE_NEOX), qk_norm="head")
        if il < hp.expert.n_dense:
            self.ffn = GatedMLP(hp.n_embd, hp.n_ff(il))
        else:
            n_ff_shared = (hp.expert.n_ff_shared or hp.expert.n_ff(il)) * hp.expert.n_shared
            self.ffn = ExpertsAndShared(hp, Experts.of(hp, il, bias=True), n_ff_shared)


class Model(CausalLM):
    block = Block
