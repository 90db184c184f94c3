"""nomic-bert-moe: bert with rotary positions, and in some layers experts without gates (llama.cpp: models/nomic-bert-moe.cpp)."""

from pyggml import ops
from pyggml.model.attention import Attention
from pyggml.model.encoder import Bert, PostNormBlock
from pyggml.model.experts import Experts
from pyggml.model.hparams import Hparams
from pyggml.model.mlp import MLP, gelu
from pyggml.model.rope import Rope


class Block(PostNormBlock):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il)
        self.attn = Attention(hp, il, rope=Rope(hp, ops.ROPE_NEOX))
        every = hp.u32("moe_every_n_layers", 0, least=0)
        if every and il % every == 1:
            n, used = hp.n_expert, hp.n_expert_used
            self.ffn = Experts(hp.n_embd, hp.n_ff(il), n, used, renormalise=False, activation=gelu)
        else:
            self.ffn = MLP(hp.n_embd, hp.n_ff(il))


class Model(Bert):
    block = Block
