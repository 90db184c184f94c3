"""deepseek4 (DeepSeek V4): a window of the last tokens and rows that stand for blocks of 4 or 128 tokens before; of the former an
indexer chooses; hyper-connections whose streams are mixed anew; first layers choose experts by the token (llama.cpp:
models/deepseek4.cpp)."""

import math
from collections.abc import Container, Iterator, Mapping
from dataclasses import replace
from typing import Any

from pyggml import ops
from pyggml.errors import ModelError
from pyggml.model.blocks import RemixedBlock
from pyggml.model.compressed import CHOOSES, KEEPS_ALL, CompressedAttention
from pyggml.model.experts import Experts, ExpertsAndShared, clamped
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.hyper_connections import Mix
from pyggml.model.layers import CausalLM
from pyggml.model.rope import Rope
from pyggml.tensor import Tensor


def _ratio(hp: Hparams, il: int) -> int:
    full, value = hp.find("attention.compress_ratios")
    items = [] if value is None else list(hp.items(value))
    if len(items) < hp.n_layer_all or any(n not in (0, CHOOSES, KEEPS_ALL) for n in items):
        raise ModelError(f"key {full} must say 0, {CHOOSES} or {KEEPS_ALL} for each of the {hp.n_layer_all} layers")
    return int(items[il])


def _rope(hp: Hparams, ratio: int) -> Rope:
    """Yarn counts where there are blocks; its factor of magnitudes is taken back."""
    if not ratio:
        return Rope(hp, ops.ROPE_NORMAL, freq_scale=1.0, scaled=False, factors="none")
    scaling = hp.rope
    factor = 1.0 / (1.0 + 0.1 * math.log(1.0 / scaling.freq_scale)) if scaling.ext_factor else 1.0
    base = hp.f32("attention.compress_rope_freq_base")
    return Rope(hp, ops.ROPE_NORMAL, freq_base=base, scaling=replace(scaling, attn_factor=factor), factors="none")


class Block(RemixedBlock):
    n_vocab = 0

    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il)
        ratio = _ratio(hp, il)
        self.attn = CompressedAttention(hp, il, ratio, _rope(hp, ratio))
        keys = hp.expert
        if keys.gating != "sqrt_softplus":
            raise ModelError(f"key {hp.architecture}.expert_gating_func must say sqrt_softplus (4)")
        hashed = il < hp.u32("hash_layer_count", 0, least=0)
        cut, cut_shared = clamped(hp, il)
        experts = Experts.of(hp, il, bias=not hashed, by_token=self.n_vocab if hashed else 0, **cut)
        self.ffn = ExpertsAndShared(hp, experts, keys.n_ff(il) * keys.n_shared, **cut_shared)

    def passed_over(self, tensors: Container[str]) -> Iterator[str]:
        """What is added to probabilities for tokens of images."""
        yield f"blk.{self.il}.exp_probs_b_vl.bias"


class Model(CausalLM):
    def __init__(self, hp: Hparams, tensors: Mapping[str, Any]) -> None:
        n_vocab = int(tensors["token_embd.weight"].ne[1]) if "token_embd.weight" in tensors else 0
        self.block = type("Block", (Block,), {"n_vocab": n_vocab})
        super().__init__(hp, tensors)
        self.output_mix = Mix(hp, "output_hc", adds=False)

    def embed(self, g: GraphBuilder) -> Tensor:
        """(n_embd, streams, n_tokens), all alike."""
        cur = super().embed(g)
        n_embd, n_tokens = cur.ne[:2]
        return ops.repeat(ops.reshape(cur, n_embd, 1, n_tokens), n_embd, self.output_mix.n, n_tokens)

    def normed(self, g: GraphBuilder, x: Tensor) -> Tensor:
        (flat,) = g.select_outputs(g.last, ops.reshape(x, x.ne[0] * x.ne[1], x.ne[2]))
        return super().normed(g, self.output_mix(g, ops.reshape(flat, *x.ne[:2], flat.ne[1]))[0])
