"""dots3note: latent attention, in most layers within a window and of other sizes, else of what an indexer chooses; a norm of
the keys' shared part, and a gate a head (llama.cpp: models/dots3note.cpp)."""

from typing import Any

from pyggml import ops
from pyggml.model.blocks import PreNormBlock
from pyggml.model.experts import Experts, ExpertsAndShared
from pyggml.model.hparams import Hparams
from pyggml.model.latent_attention import LatentAttention
from pyggml.model.layers import CausalLM
from pyggml.model.lightning_indexer import Indexer, SparseLatentAttention
from pyggml.model.mlp import GatedMLP
from pyggml.model.rope import Rope


class Block(PreNormBlock):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il)
        window = hp.windows.of(il, 1)
        parts: dict[str, Any] = {"norm_shared": True, "gated": "heads"}
        if window:
            rope = Rope(hp, ops.ROPE_NORMAL, freq_base=hp.windows.freq_base(), factors="none")
            self.attn = LatentAttention(hp, il, rope=rope, window=window, **parts)
        else:
            turn = Rope(hp, ops.ROPE_NEOX, factors="none")
            indexer = Indexer(hp, hp.u32("attention.q_lora_rank"), turn, eps=1e-6)
            rope = Rope(hp, ops.ROPE_NORMAL, factors="none")
            self.attn = SparseLatentAttention(hp, il, rope=rope, indexer=indexer, **parts)
        if il < hp.expert.n_dense:
            self.ffn = GatedMLP(hp.n_embd, hp.n_ff(il))
        else:
            self.ffn = ExpertsAndShared(hp, Experts.of(hp, il, bias=True), hp.expert.n_ff(il) * hp.expert.n_shared)


class Model(CausalLM):
    block = Block
