"""exaone4: norms behind attention and feed-forward network, and of each head of queries and keys; the large one with
windows, and positions in layers that have one (llama.cpp: models/exaone4.cpp)."""

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
        windows = hp.n_layer == 64
        window = (hp.windows.of(il, 4) or 4096) if windows and hp.windows.pattern(4)[il] else None
        rope = Rope(hp, ops.ROPE_NEOX) if window or not windows else None
        self.attn = Attention(hp, il, rope=rope, qk_norm="head", window=window)
        self.ffn = GatedMLP(hp.n_embd, hp.n_ff(il))


class Model(CausalLM):
    block = Block
