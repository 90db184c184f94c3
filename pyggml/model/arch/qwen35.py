"""qwen35 (Qwen 3.5): gated delta nets, and every fourth layer gated attention with norms of queries and keys and positions of
several axes (llama.cpp: models/qwen35.cpp)."""

from pyggml import ops
from pyggml.model.blocks import PreNormBlock
from pyggml.model.delta_net import DeltaNet
from pyggml.model.gated_attention import GatedAttention
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.mlp import GatedMLP
from pyggml.model.norms import NamedNorm, RMSNorm
from pyggml.model.pooling import Head
from pyggml.model.rope import Rope
from pyggml.model.states import is_recurrent


class Block(PreNormBlock):
    """The feed-forward network is the subclass's to change."""

    delta_net = DeltaNet
    rope_mode = ops.ROPE_IMROPE

    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il)
        self.ffn_norm = NamedNorm("post_attention_norm", RMSNorm.of(hp))
        if is_recurrent(hp, il):
            self.attn = self.delta_net(hp, il)
        else:
            rope = Rope(hp, self.rope_mode)
            self.attn = GatedAttention(hp, il, rope=rope, qk_norm="head", scale=hp.attention_scale)
        self.ffn = self.network(hp, il)

    def network(self, hp: Hparams, il: int) -> object:
        return GatedMLP(hp.n_embd, hp.n_ff(il))


class Model(CausalLM):
    block = Block

    def make_head(self, hp: Hparams) -> Head:
        return Head(hp, of_tokens="cls.output")
