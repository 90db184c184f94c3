"""The blocks that models are stacks of: where norms, attention, feed-forward network and residuals stand.

Owns the order of their nodes, which is llama.cpp's; knows no architecture's name.
"""

from __future__ import annotations

from typing import Any

from pyggml import ops
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.hyper_connections import Remix
from pyggml.model.module import Module
from pyggml.model.norms import RMSNorm
from pyggml.tensor import Tensor


class Block(Module):
    """x += post(attn(pre(x))); x += post(ffn(pre(x))). An architecture sets `attn` and `ffn`, and may change norms.

    norm      the class of the norms
    pre       norms before attention and feed-forward network: attn_norm, ffn_norm
    post      norms behind them: post_attention_norm, post_ffw_norm
    residual  what both results are multiplied by
    """

    attn: Any
    ffn: Any
    attn_norm: Any
    ffn_norm: Any

    def __init__(
        self, hp: Hparams, il: int, *, norm: Any = RMSNorm, pre: bool = True, post: bool = False, residual: float = 1.0
    ) -> None:
        self.attn_norm = norm.of(hp) if pre else None
        self.post_attention_norm = norm.of(hp) if post else None
        self.ffn_norm = norm.of(hp) if pre else None
        self.post_ffw_norm = norm.of(hp) if post else None
        self.residual = residual

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        """(n_embd, n_tokens) -> the same; after the last layer only the outputs' columns."""
        cur, x = g.select_outputs(self.il, self.attn(g, _normed(g, self.attn_norm, x)), x)
        x = ops.add(self._back(g, self.post_attention_norm, cur), x, name=f"ffn_inp-{self.il}")
        cur = self.ffn(g, _normed(g, self.ffn_norm, x))
        return ops.add(self._back(g, self.post_ffw_norm, cur), x, name=f"l_out-{self.il}")

    def _back(self, g: GraphBuilder, norm: Any, cur: Tensor) -> Tensor:
        cur = _normed(g, norm, cur)
        return cur if self.residual == 1.0 else ops.scale(cur, self.residual)


class PreNormBlock(Block):
    """x += attn(attn_norm(x)); x += ffn(ffn_norm(x)), with RMS norms."""


class MixerBlock(Module):
    """x += mixer(attn_norm(x)): one thing a layer. An architecture sets `mixer`."""

    mixer: Any

    def __init__(self, hp: Hparams, il: int, *, norm: Any = RMSNorm) -> None:
        self.attn_norm = norm.of(hp)

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        cur, x = g.select_outputs(self.il, self.mixer(g, self.attn_norm(g, x)), x)
        return ops.add(cur, x, name=f"l_out-{self.il}")


class ParallelBlock(Block):
    """x += attn(attn_norm(x)) + ffn(ffn_norm(x)); without `ffn_norm` both read attn_norm(x)."""

    def __init__(self, hp: Hparams, il: int, *, norm: Any = RMSNorm, pre_ffn: bool = False) -> None:
        super().__init__(hp, il, norm=norm)
        if not pre_ffn:
            self.ffn_norm = None

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        normed = _normed(g, self.attn_norm, x)
        cur, x, normed = g.select_outputs(self.il, self.attn(g, normed), x, normed)
        ffn = self.ffn(g, normed if self.ffn_norm is None else self.ffn_norm(g, x))
        return ops.add(ops.add(ffn, x), cur, name=f"l_out-{self.il}")


class RemixedBlock(Module):
    """Streams of embeddings, each time mixed anew around attn(attn_norm(mix)) and ffn(ffn_norm(mix)) (llama.cpp:
    models/deepseek4.cpp, models/glm5-next.cpp). An architecture sets `attn` and `ffn`."""

    attn: Any
    ffn: Any

    def __init__(self, hp: Hparams, il: int) -> None:
        self.attn_mix, self.ffn_mix = Remix(hp, "hc_attn"), Remix(hp, "hc_ffn")
        self.attn_norm, self.ffn_norm = RMSNorm.of(hp), RMSNorm.of(hp)

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        """(n_embd, streams, n_tokens) -> the same."""
        cur, weights, mixing = self.attn_mix(g, x)
        cur = self.attn(g, self.attn_norm(g, cur))
        x = ops.dsv4_hc_post(cur, x, weights, mixing, name=f"hc_attn_post-{self.il}")
        cur, weights, mixing = self.ffn_mix(g, x)
        g.expand(self.il, x, weights, mixing)
        cur = self.ffn(g, self.ffn_norm(g, cur))
        return ops.dsv4_hc_post(cur, x, weights, mixing, name=f"l_out-{self.il}")


def _normed(g: GraphBuilder, norm: Any, x: Tensor) -> Tensor:
    return x if norm is None else norm(g, x)
