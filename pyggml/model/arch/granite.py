"""granite (Granite 3 and 4): llama with factors of its own for embeddings, attention, residuals and logits; with experts in
granitemoe (llama.cpp: models/granite.cpp)."""

from collections.abc import Mapping
from typing import Any

from pyggml import ops
from pyggml.model.attention import Attention
from pyggml.model.blocks import Block as Base
from pyggml.model.experts import Experts, ExpertsAndShared
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.mlp import GatedMLP, silu
from pyggml.model.rope import Rope


class Block(Base):
    may_lack_rope = True

    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il, residual=hp.f32("residual_scale", 0.0, positive=False) or 1.0)
        self.attn = self.attention(hp, il)
        if not hp.n_expert:
            self.ffn = GatedMLP(hp.n_embd, hp.n_ff(il))
        elif hp.expert.n_ff_shared:
            self.ffn = ExpertsAndShared(
                hp, Experts.of(hp, il, renormalise=True, activation=silu), hp.expert.n_ff_shared
            )
        else:
            self.ffn = Experts.of(hp, il, renormalise=True, activation=silu)

    def attention(self, hp: Hparams, il: int) -> Any:
        without = self.may_lack_rope and not hp.boolean("rope.scaling.finetuned", True)
        return Attention(hp, il, rope=None if without else Rope(hp, ops.ROPE_NORMAL), scale=hp.attention_scale)


class Model(CausalLM):
    block = Block

    def __init__(self, hp: Hparams, tensors: Mapping[str, Any]) -> None:
        super().__init__(hp, tensors)
        self.embed_scale = hp.f32("embedding_scale", 0.0, positive=False) or 1.0
        self.logit_scale = 1.0 / hp.f32("logit_scale")
