"""jamba: layers of Mamba, with norms of steps, B and C, and of attention without positions; a layer has experts where the
file has a router (llama.cpp: models/jamba.cpp)."""

from collections.abc import Mapping
from typing import Any

from pyggml.model.attention import Attention
from pyggml.model.blocks import PreNormBlock
from pyggml.model.experts import Experts
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.mamba import Mamba
from pyggml.model.mlp import GatedMLP


class Block(PreNormBlock):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il)
        self.attn = Attention(hp, il, rope=None) if hp.has_attention(il) else Mamba(hp, il, normed=True)
        self.ffn = GatedMLP(hp.n_embd, hp.n_ff(il))


class Model(CausalLM):
    block = Block

    def __init__(self, hp: Hparams, tensors: Mapping[str, Any]) -> None:
        super().__init__(hp, tensors)
        for il, block in enumerate(self.blk):
            if f"blk.{il}.ffn_gate_inp.weight" in tensors:
                block.ffn = Experts.of(hp, il, gating="softmax", renormalise=False)
