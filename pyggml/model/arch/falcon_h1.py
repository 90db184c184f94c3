"""falcon-h1: each layer has attention and Mamba 2 side by side, which read one norm and are added (llama.cpp:
models/falcon-h1.cpp)."""

from pyggml import ops
from pyggml.model.attention import Attention
from pyggml.model.blocks import PreNormBlock
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.mamba import Mamba2
from pyggml.model.mlp import GatedMLP
from pyggml.model.module import Module
from pyggml.model.norms import BareRMSNorm
from pyggml.model.rope import Rope
from pyggml.tensor import Tensor


class Both(Module):
    def __init__(self, hp: Hparams, il: int) -> None:
        self.attention = Attention(hp, il, rope=Rope(hp, ops.ROPE_NEOX), scale=hp.attention_scale)
        self.mamba = Mamba2(hp, il, normed=False)

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        return ops.add(self.attention(g, x), self.mamba(g, x), name=f"mixed-{self.il}")


class Block(PreNormBlock):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il)
        self.attn = Both(hp, il)
        self.ffn_norm = BareRMSNorm.of(hp)
        self.ffn = GatedMLP(hp.n_embd, hp.n_ff(il))


class Model(CausalLM):
    block = Block
