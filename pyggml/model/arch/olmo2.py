"""olmo2 (OLMo 2 and 3): norms behind attention and feed-forward network, and of queries and keys as whole rows; OLMo 3 with
windows, whose positions are not scaled (llama.cpp: models/olmo2.cpp)."""

from pyggml import ops
from pyggml.model.attention import Attention
from pyggml.model.blocks import Block as Base
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.mlp import GatedMLP
from pyggml.model.rope import Rope


class Block(Base):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il, pre=False, post=True)
        window = hp.windows.of(il, 4)
        rope = Rope(hp, ops.ROPE_NEOX, freq_scale=1.0, scaled=False) if window else Rope(hp, ops.ROPE_NEOX)
        self.attn = Attention(hp, il, rope=rope, qk_norm="row", window=window)
        self.ffn = GatedMLP(hp.n_embd, hp.n_ff(il))


class Model(CausalLM):
    block = Block
