"""hunyuan_vl and hunyuan-dense: llama with norms of each head of queries and keys, after they are turned; positions of several axes
where the file has sections (llama.cpp: models/hunyuan-vl.cpp)."""

from pyggml import ops
from pyggml.model.attention import Attention
from pyggml.model.blocks import PreNormBlock
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.mlp import GatedMLP
from pyggml.model.rope import Rope


class Block(PreNormBlock):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il)
        rope = Rope(hp, ops.ROPE_MROPE if hp.has_sections else ops.ROPE_NEOX)
        if alpha := hp.f32("rope.scaling.alpha", 0.0, positive=False):
            head = hp.head_k(il)
            rope.freq_base *= alpha ** (head / (head - 2))
        self.attn = Attention(hp, il, rope=rope, qk_norm="head", norm_last=True)
        self.ffn = GatedMLP(hp.n_embd, hp.n_ff(il))


class Model(CausalLM):
    block = Block
