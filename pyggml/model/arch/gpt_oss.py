"""gpt-oss: attention with sinks, a window in every second layer; experts with biases and a clamped gate, whose shares are the
soft max of the chosen ones (llama.cpp: models/openai-moe.cpp)."""

from pyggml import ops
from pyggml.model.attention import Attention
from pyggml.model.blocks import PreNormBlock
from pyggml.model.experts import Experts
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.norms import NamedNorm, RMSNorm
from pyggml.model.rope import Rope

ALPHA, LIMIT = 1.702, 7.0
"""Of the gate: llama-graph.cpp, LLM_FFN_SWIGLU_OAI_MOE."""


class Block(PreNormBlock):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il)
        window = hp.windows.of(il, 2)
        self.attn = Attention(hp, il, rope=Rope.windowed(hp, ops.ROPE_NEOX, window), window=window, sinks="must")
        self.ffn_norm = NamedNorm("post_attention_norm", RMSNorm.of(hp))
        self.ffn = Experts.of(
            hp, il, gating="softmax_weight", kind=ops.GluOp.SWIGLU_OAI, alpha=ALPHA, limit=LIMIT, router_bias=True
        )


class Model(CausalLM):
    block = Block
