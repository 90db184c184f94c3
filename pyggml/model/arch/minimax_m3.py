"""minimax-m3 (MiniMax M3): norms of each head of queries and keys; behind the first layers attention to the blocks of tokens
that an indexer chooses, experts, and some that every token uses (llama.cpp: models/minimax-m3.cpp)."""

from typing import Any

from pyggml import ops
from pyggml.model.arch.gpt_oss import ALPHA, LIMIT
from pyggml.model.attention import Attention
from pyggml.model.block_indexer import BlockIndexer, BlockSparseAttention
from pyggml.model.blocks import PreNormBlock
from pyggml.model.experts import Experts, ExpertsAndShared
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.mlp import GatedMLP
from pyggml.model.rope import Rope


class Block(PreNormBlock):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il)
        parts: dict[str, Any] = {"rope": Rope(hp, ops.ROPE_NEOX), "qk_norm": "head"}
        gate: dict[str, Any] = {"kind": ops.GluOp.SWIGLU_OAI, "alpha": ALPHA, "limit": LIMIT}
        if il < hp.expert.n_dense:
            self.attn = Attention(hp, il, **parts)
            self.ffn = GatedMLP(hp.n_embd, hp.n_ff(il), **gate)
        else:
            self.attn = BlockSparseAttention(hp, il, indexer=BlockIndexer(hp, il, Rope(hp, ops.ROPE_NEOX)), **parts)
            experts = Experts.of(hp, il, bias=True, **gate)
            self.ffn = ExpertsAndShared(hp, experts, hp.expert.n_ff(il) * hp.expert.n_shared, **gate)


class Model(CausalLM):
    block = Block
