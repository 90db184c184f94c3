"""gptneox (GPT-NeoX, Pythia): layer norms, biases; attention and feed-forward network side by side, each behind its own
norm, or one after the other (llama.cpp: models/gptneox.cpp)."""

from pyggml import ops
from pyggml.model.attention import Attention
from pyggml.model.blocks import Block as Base
from pyggml.model.blocks import ParallelBlock
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.mlp import MLP, gelu
from pyggml.model.norms import LayerNorm
from pyggml.model.rope import Rope
from pyggml.tensor import Tensor


class Block(ParallelBlock):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il, norm=LayerNorm, pre_ffn=True)
        self.parallel = hp.boolean("use_parallel_residual", True)
        self.attn = Attention(hp, il, rope=Rope(hp, ops.ROPE_NEOX))
        self.ffn = MLP(hp.n_embd, hp.n_ff(il), gelu)

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        return super().__call__(g, x) if self.parallel else Base.__call__(self, g, x)


class Model(CausalLM):
    block, norm = Block, LayerNorm
