"""exaone-moe (K-EXAONE): norms of each head of queries and keys; a window, and positions, in three of four layers; experts
behind the first layers, and one that every token uses (llama.cpp: models/exaone-moe.cpp)."""

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
        window = hp.windows.of(il, 4)
        self.attn = Attention(hp, il, rope=Rope(hp, ops.ROPE_NEOX) if window else None, qk_norm="head", window=window)
        if il < hp.expert.n_dense:
            self.ffn = GatedMLP(hp.n_embd, hp.n_ff(il))
        else:
            experts = Experts.of(hp, il, bias=True)
            self.ffn = ExpertsAndShared(hp, experts, hp.expert.n_ff_shared or hp.expert.n_ff(il))


class Model(CausalLM):
    block = Block
