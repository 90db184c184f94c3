"""ernie4_5-moe: llama with experts behind the first layers, and one that every token uses
(llama.cpp: models/ernie4-5-moe.cpp)."""

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
        self.attn = Attention(hp, il, rope=Rope(hp, ops.ROPE_NORMAL))
        if il < hp.expert.n_dense or (il + 1) % hp.u32("interleave_moe_layer_step"):
            self.ffn = GatedMLP(hp.n_embd, hp.n_ff(il))
            return
        experts = Experts.of(hp, il, bias=True, renormalise=True, gating="softmax")
        n_ff_shared = hp.expert.n_ff_shared
        self.ffn = ExpertsAndShared(hp, experts, n_ff_shared) if n_ff_shared else experts


class Model(CausalLM):
    block = Block
