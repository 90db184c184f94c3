"""llama4 (Scout, Maverick): three of four layers see chunks of 8192 tokens, the fourth all, without positions but with
queries that grow with them; norms without weights of queries and keys that are turned; in every second layer, or so,
experts whose shares multiply what goes into them, and one that every token uses (llama.cpp: models/llama4.cpp)."""

from dataclasses import replace

from pyggml import ops
from pyggml.memory import Need
from pyggml.model.attention import Attention, Temperature
from pyggml.model.blocks import PreNormBlock
from pyggml.model.experts import Experts, ExpertsAndShared
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.mlp import GatedMLP
from pyggml.model.norms import PlainRMSNorm
from pyggml.model.rope import Rope

CHUNK = 8192
WITHOUT_NORMS = 128  # experts of the model (Maverick) that has no norms of queries and keys


class Chunked(Attention):
    """Attention in chunks, where it has a window."""

    def need(self) -> Need:
        return replace(super().need(), chunked=self.window is not None)


class Block(PreNormBlock):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il)
        whole = hp.u32("attention.sliding_window", CHUNK, least=0) == 0
        window = None if whole or not hp.windows.pattern(4)[il] else CHUNK
        scale = hp.attention_scale
        if (il + 1) % (hp.n_layer if whole else 4):
            norm = None if hp.n_expert == WITHOUT_NORMS else "head"
            rope = Rope.windowed(hp, ops.ROPE_NORMAL, window)
            self.attn = Chunked(
                hp, il, rope=rope, qk_norm=norm, norm=PlainRMSNorm, norm_last=True, window=window, scale=scale
            )
        else:
            growth = None if whole else Temperature(0.1, CHUNK, 1.0)
            self.attn = Chunked(hp, il, rope=None, window=window, temperature=growth, scale=scale)
        step = hp.u32("interleave_moe_layer_step", least=0)
        if step and (il + 1) % step == 0:
            experts = Experts.of(hp, il, gating="sigmoid", renormalise=False, rank_logits=True, weight_first=True)
            self.ffn = ExpertsAndShared(hp, experts, hp.expert.n_ff(il))
        else:
            self.ffn = GatedMLP(hp.n_embd, hp.n_ff(il))


class Model(CausalLM):
    block = Block
