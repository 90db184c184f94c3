"""stablelm: layer norms; some with norms of each head of queries and keys, some (those of 12B) with one norm for attention
and feed-forward network (llama.cpp: models/stablelm.cpp)."""

from pyggml import ops
from pyggml.model.attention import Attention
from pyggml.model.blocks import Block as Base
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.mlp import GatedMLP
from pyggml.model.norms import LayerNorm
from pyggml.model.rope import Rope
from pyggml.tensor import Tensor


class Block(Base):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il, norm=LayerNorm)
        self.ffn_norm = LayerNorm.of(hp, required=False)
        self.attn = Attention(hp, il, rope=Rope(hp, ops.ROPE_NEOX), qk_norm="heads", norm=LayerNorm, norm_needed=False)
        self.ffn = GatedMLP(hp.n_embd, hp.n_ff(il))

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        normed = self.attn_norm(g, x)
        cur, x, normed = g.select_outputs(self.il, self.attn(g, normed), x, normed)
        x = ops.add(cur, x, name=f"ffn_inp-{self.il}")
        cur = self.ffn_norm(g, x) if self.ffn_norm.weight.there else normed
        return ops.add(self.ffn(g, cur), x, name=f"l_out-{self.il}")


class Model(CausalLM):
    block, norm = Block, LayerNorm
