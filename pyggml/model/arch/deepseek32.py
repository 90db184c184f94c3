"""deepseek32 (DeepSeek V3.2): deepseek2 whose attention reads the tokens that an indexer chooses
(llama.cpp: models/deepseek32.cpp)."""

from pyggml import ops
from pyggml.model.blocks import PreNormBlock
from pyggml.model.experts import Experts, ExpertsAndShared
from pyggml.model.hparams import Hparams
from pyggml.model.latent_attention import magnitude
from pyggml.model.layers import CausalLM
from pyggml.model.lightning_indexer import Indexer, SparseLatentAttention
from pyggml.model.mlp import GatedMLP
from pyggml.model.rope import Rope


class Block(PreNormBlock):
    mode, eps = ops.ROPE_NEOX, 1e-6  # of the indexer

    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il)
        scaling = hp.scaled_rope(log_multiplier=self.multiplier(hp))
        rope = Rope(hp, ops.ROPE_NORMAL, scaling=scaling, factors="none")
        turn = Rope(hp, self.mode, scaling=scaling, factors="none")
        rank_q = hp.u32("attention.q_lora_rank")
        indexer = Indexer(hp, rank_q, turn, eps=self.eps) if self.chooses(hp, il) else None
        self.attn = SparseLatentAttention(hp, il, rope=rope, indexer=indexer)
        self.attn.scale *= magnitude(scaling) ** 2
        if il < hp.expert.n_dense:
            self.ffn = GatedMLP(hp.n_embd, hp.n_ff(il))
        else:
            experts = Experts.of(hp, il, bias=True, gating=hp.expert.gating or "sigmoid")
            self.ffn = ExpertsAndShared(hp, experts, hp.expert.n_ff(il) * hp.expert.n_shared)

    @staticmethod
    def multiplier(hp: Hparams) -> float:
        return hp.f32("rope.scaling.yarn_log_multiplier", 0.0, positive=False) / 0.1

    @staticmethod
    def chooses(hp: Hparams, il: int) -> bool:
        """Whether the layer has an indexer; else it reads what an earlier one chose."""
        return True


class Model(CausalLM):
    block = Block
