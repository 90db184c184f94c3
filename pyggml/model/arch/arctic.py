"""arctic (Snowflake Arctic): in each layer a feed-forward network behind attention, and experts that read what attention read
(llama.cpp: models/arctic.cpp)."""

from pyggml import ops
from pyggml.model.attention import Attention
from pyggml.model.blocks import PreNormBlock
from pyggml.model.experts import Experts
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.mlp import GatedMLP
from pyggml.model.norms import RMSNorm
from pyggml.model.rope import Rope
from pyggml.tensor import Tensor


class Block(PreNormBlock):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il)
        self.attn = Attention(hp, il, rope=Rope(hp, ops.ROPE_NORMAL))
        self.ffn = GatedMLP(hp.n_embd, hp.n_embd)
        self.ffn_norm_exps = RMSNorm.of(hp)
        self.experts = Experts.of(hp, il, hp.n_ff(il), gating="softmax", renormalise=True)

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        cur, x = g.select_outputs(self.il, self.attn(g, self.attn_norm(g, x)), x)
        cur = ops.add(cur, x, name=f"ffn_inp-{self.il}")
        dense = ops.add(self.ffn(g, self.ffn_norm(g, cur)), cur)
        return ops.add(self.experts(g, self.ffn_norm_exps(g, x)), dense, name=f"l_out-{self.il}")


class Model(CausalLM):
    block = Block
