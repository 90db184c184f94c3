"""deepseek2 (DeepSeek V2, V3, R1, Kimi K2, GLM-4.7-Flash): latent attention; experts behind the first layers, and some that
every token uses (llama.cpp: models/deepseek2.cpp)."""

from collections.abc import Sized

from pyggml import ops
from pyggml.model.attention import Temperature
from pyggml.model.blocks import PreNormBlock
from pyggml.model.experts import Experts, ExpertsAndShared
from pyggml.model.hparams import Hparams
from pyggml.model.latent_attention import ExpandedAttention, LatentAttention, magnitude
from pyggml.model.layers import CausalLM
from pyggml.model.mlp import GatedMLP
from pyggml.model.rope import Rope
from pyggml.model.rope_options import RopeScaling


class Block(PreNormBlock):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il)
        scaling = self.scaling(hp, hp.f32("rope.scaling.yarn_log_multiplier", 0.0, positive=False) / 0.1)
        rope = Rope(hp, ops.ROPE_NORMAL, scaling=scaling, factors="none")
        kind = LatentAttention if hp.u32("attention.key_length_mla", 0, least=0) else ExpandedAttention
        self.attn = kind(hp, il, rope=rope, temperature=_temperature(hp))
        self.attn.scale *= magnitude(scaling) ** 2
        if il < hp.expert.n_dense:
            self.ffn = GatedMLP(hp.n_embd, hp.n_ff(il))
        else:
            gating = hp.expert.gating or ("sigmoid" if _is_glm_flash(hp) else "softmax")
            experts = Experts.of(hp, il, bias=True, gating=gating)
            self.ffn = ExpertsAndShared(hp, experts, hp.expert.n_ff(il) * hp.expert.n_shared)

    @staticmethod
    def scaling(hp: Hparams, multiplier: float) -> RopeScaling:
        """What the multiplier adds for queries and keys, it takes away again (llama-context.cpp)."""
        return hp.scaled_rope(log_multiplier=multiplier, log_numerator=multiplier)


def _temperature(hp: Hparams) -> Temperature | None:
    scale = hp.f32("attention.temperature_scale", 0.0, positive=False)
    return Temperature(scale, hp.u32("attention.temperature_length")) if scale else None


def _is_glm_flash(hp: Hparams) -> bool:
    """GLM-4.7-Flash, whose files do not say how experts are chosen."""
    tokens = hp.metadata.get("tokenizer.ggml.tokens")
    n_vocab = hp.u32("vocab_size", len(tokens) if isinstance(tokens, Sized) else 0, least=0)
    return hp.n_layer in (47, 48) and n_vocab == 154880


class Model(CausalLM):
    block = Block
