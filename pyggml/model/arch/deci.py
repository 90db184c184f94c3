"""deci (Llama-Nemotron): llama of which layers may lack attention, or have a matrix in its place, or no feed-forward network
(llama.cpp: models/deci.cpp)."""

from pyggml import ops
from pyggml.model.attention import Attention
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.linear import Linear
from pyggml.model.mlp import GatedMLP
from pyggml.model.module import Module
from pyggml.model.norms import RMSNorm
from pyggml.model.rope import Rope
from pyggml.tensor import Tensor


class Block(Module):
    def __init__(self, hp: Hparams, il: int) -> None:
        self.kind = "attention" if hp.has_attention(il) else "matrix" if hp.has_queries(il) else "none"
        if self.kind != "none":
            self.attn_norm = RMSNorm.of(hp)
        if self.kind == "attention":
            self.attn = Attention(hp, il, rope=Rope(hp, ops.ROPE_NORMAL), scale=hp.attention_scale)
        elif self.kind == "matrix":
            self.attn_output = Linear(hp.n_embd, hp.n_embd)
        self.has_ffn = hp.has_ffn(il)
        if self.has_ffn:
            self.ffn_norm = RMSNorm.of(hp)
            self.ffn = GatedMLP(hp.n_embd, hp.n_ff(il))

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        if self.kind == "none":
            (x,) = g.select_outputs(self.il, x)
        else:
            cur = self.attn_norm(g, x)
            cur = self.attn(g, cur) if self.kind == "attention" else g.linear(self.attn_output, cur)
            cur, x = g.select_outputs(self.il, cur, x)
            x = ops.add(cur, x, name=f"ffn_inp-{self.il}")
        return ops.add(self.ffn(g, self.ffn_norm(g, x)), x, name=f"l_out-{self.il}") if self.has_ffn else x


class Model(CausalLM):
    block = Block
