"""cogvlm: llama with rotary positions on the halves of a head; tensors for parts of images are left alone
(llama.cpp: models/cogvlm.cpp)."""

from collections.abc import Container, Iterator

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
        self.attn = Attention(
            hp, il, rope=Rope(hp, ops.ROPE_NEOX, n_rot=hp.head_k(il), freq_base=10000.0, scaled=False)
        )
        self.ffn = GatedMLP(hp.n_embd, hp.n_ff(il))

    def passed_over(self, tensors: Container[str]) -> Iterator[str]:
        names = ("vis_attn_qkv", "vis_attn_output", "vis_gate", "vis_down", "vis_up")
        yield from (f"blk.{self.il}.{name}.weight" for name in names)


class Model(CausalLM):
    block = Block
