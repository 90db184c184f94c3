"""glm4moe (GLM-4.5, 4.6, 4.7 and their Air, Solar Open): biased queries and keys, perhaps with norms of each head; experts
behind the first layers, and some that every token uses (llama.cpp: models/glm4-moe.cpp)."""

from pyggml import ops
from pyggml.model.attention import Attention
from pyggml.model.blocks import PreNormBlock
from pyggml.model.experts import Experts, ExpertsAndShared
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.mlp import GatedMLP
from pyggml.model.norms import NamedNorm, RMSNorm
from pyggml.model.rope import Rope


class Block(PreNormBlock):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il)
        rope = Rope(hp, ops.ROPE_MROPE if hp.has_sections else ops.ROPE_NEOX)
        self.attn = Attention(hp, il, rope=rope, qk_norm="head", norm_needed=False)
        self.ffn_norm = NamedNorm("post_attention_norm", RMSNorm.of(hp))
        if il < hp.expert.n_dense:
            self.ffn = GatedMLP(hp.n_embd, hp.n_ff(il))
            return
        n_ff = hp.expert.n_ff(il) or hp.n_ff(il) // hp.n_expert_used
        experts = Experts.of(hp, il, n_ff, bias=True, gating=hp.expert.gating or "sigmoid")
        n_shared = hp.expert.n_shared
        self.ffn = ExpertsAndShared(hp, experts, n_ff * n_shared) if n_shared else experts


class Model(CausalLM):
    block = Block
