"""spark2_5: llama with GELU in the gate, windows in the layers that the file says, and a gate for each head of what attention
finds (llama.cpp: models/spark2-5.cpp)."""

from pyggml import ops
from pyggml.model.blocks import PreNormBlock
from pyggml.model.gated_attention import AttentionAndGate
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.mlp import GatedMLP
from pyggml.model.rope import Rope


class Block(PreNormBlock):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il)
        window = hp.windows.of(il, 0)
        self.attn = AttentionAndGate(hp, il, rope=Rope.windowed(hp, ops.ROPE_NEOX, window), window=window)
        self.ffn = GatedMLP(hp.n_embd, hp.n_ff(il), ops.GluOp.GEGLU)


class Model(CausalLM):
    block = Block
