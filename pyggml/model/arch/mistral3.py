"""mistral3 (Ministral 3, Devstral 2): llama whose queries grow with the position, dense or with experts
(llama.cpp: models/mistral3.cpp)."""

from pyggml import ops
from pyggml.model.attention import Attention, Temperature
from pyggml.model.blocks import PreNormBlock
from pyggml.model.experts import Experts
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.mlp import GatedMLP, silu
from pyggml.model.rope import Rope


class Block(PreNormBlock):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il)
        scale = hp.f32("attention.temperature_scale", 0.0, positive=False)
        growth = Temperature(scale, hp.rope.n_ctx_orig) if scale else None
        multiplier = hp.f32("rope.scaling.yarn_log_multiplier", 0.0, positive=False)
        rope = Rope(hp, ops.ROPE_NORMAL, scaling=hp.scaled_rope(log_multiplier=multiplier, **hp.yarn_betas()))
        self.attn = Attention(hp, il, rope=rope, temperature=growth, scale=hp.attention_scale)
        if hp.n_expert:
            self.ffn = Experts.of(hp, il, hp.n_ff(il), renormalise=True, activation=silu)
        else:
            self.ffn = GatedMLP(hp.n_embd, hp.n_ff(il))


class Model(CausalLM):
    block = Block
