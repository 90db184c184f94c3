"""plamo: attention and feed-forward network side by side behind one norm (llama.cpp: models/plamo.cpp)."""

from pyggml import ops
from pyggml.model.attention import Attention
from pyggml.model.blocks import ParallelBlock
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.mlp import GatedMLP
from pyggml.model.rope import Rope


class Block(ParallelBlock):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il)
        self.attn = Attention(hp, il, rope=Rope(hp, ops.ROPE_NEOX, n_rot=hp.head_k(il)))
        self.ffn = GatedMLP(hp.n_embd, hp.n_ff(il))


class Model(CausalLM):
    block = Block
