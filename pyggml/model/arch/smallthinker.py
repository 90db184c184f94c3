"""smallthinker: experts with ReLU in the gate, chosen by what goes into the layer, before attention; windows, and positions, in
three of four layers (llama.cpp: models/smallthinker.cpp)."""

from pyggml import ops
from pyggml.model.attention import Attention
from pyggml.model.experts import Experts
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.module import Module
from pyggml.model.norms import RMSNorm
from pyggml.model.rope import Rope
from pyggml.tensor import Tensor

WINDOW = 4096
"""Of all files that have windows, whatever size they say (llama.cpp: load_arch_hparams)."""


class Block(Module):
    def __init__(self, hp: Hparams, il: int) -> None:
        window = WINDOW if hp.windows.of(il, 4, dense_first=True) else None
        turned = il % 4 > 0 or not hp.windows.size
        self.attn_norm = RMSNorm.of(hp)
        self.attn = Attention(hp, il, rope=Rope.windowed(hp, ops.ROPE_NEOX, window) if turned else None, window=window)
        self.ffn_norm = RMSNorm.of(hp)
        self.ffn = Experts.of(
            hp, il, gating=hp.expert.gating or "softmax", kind=ops.GluOp.REGLU, renormalise=True, scale=1.0
        )

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        router = self.ffn.ffn_gate_inp
        assert router is not None
        logits = g.linear(router, x)
        cur = self.attn(g, self.attn_norm(g, x))
        cur, x, logits = g.select_outputs(self.il, cur, x, logits)
        x = ops.add(cur, x, name=f"ffn_inp-{self.il}")
        return ops.add(self.ffn(g, self.ffn_norm(g, x), logits), x, name=f"l_out-{self.il}")


class Model(CausalLM):
    block = Block
