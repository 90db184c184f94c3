"""falcon: attention and feed-forward network side by side, behind one layer norm or (the larger ones) each behind its own
(llama.cpp: models/falcon.cpp)."""

from pyggml import ops
from pyggml.model.attention import Attention
from pyggml.model.blocks import Block as Base
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.mlp import MLP, gelu
from pyggml.model.norms import LayerNorm
from pyggml.model.rope import Rope
from pyggml.tensor import Tensor


class Block(Base):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il, norm=LayerNorm)
        self.ffn_norm = None
        self.attn_norm_2 = LayerNorm.of(hp, required=False)
        self.attn = Attention(hp, il, rope=Rope(hp, ops.ROPE_NEOX))
        self.ffn = MLP(hp.n_embd, hp.n_ff(il), gelu)

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        normed = self.attn_norm(g, x)
        cur = self.attn(g, self.attn_norm_2(g, x) if self.attn_norm_2.weight.there else normed)
        cur, x, normed = g.select_outputs(self.il, cur, x, normed)
        return ops.add(ops.add(self.ffn(g, normed), cur), x, name=f"l_out-{self.il}")


class Model(CausalLM):
    block, norm = Block, LayerNorm
