"""Rotary positions of a layer: the op's parameters, with what the file and the user say, and frequency factors.

Owns these; must not know where queries and keys come from.
"""

from __future__ import annotations

import math

from pyggml import ops
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.module import Module, Weight
from pyggml.tensor import Tensor


class Factors(Module):
    """What the frequencies are divided by: one number a pair, the same for all layers."""

    def __init__(self, n: int) -> None:
        self.weight = Weight(n, required=False, shared=True)


class Rope(Module):
    """Rotates the first `n_rot` elements of each head by the token's position.

    mode        ops.ROPE_NORMAL (neighbours are a pair) or ops.ROPE_NEOX (halves of the head are)
    freq_base, freq_scale   in place of those in use for the model: layers with a window may have their own
    """

    def __init__(
        self,
        hp: Hparams,
        mode: int,
        *,
        n_rot: int | None = None,
        freq_base: float | None = None,
        freq_scale: float | None = None,
    ) -> None:
        self.scaling, self.mode = hp.rope, mode
        self.n_rot = hp.n_rot if n_rot is None else n_rot
        self.freq_base = hp.rope.freq_base if freq_base is None else freq_base
        self.freq_scale = hp.rope.freq_scale if freq_scale is None else freq_scale
        if hp.rope.scaling == "longrope":
            self.rope_factors_short = Factors(self.n_rot // 2)
            self.rope_factors_long = Factors(self.n_rot // 2)
        else:
            self.rope_freqs = Factors(self.n_rot // 2)

    def factors(self, n_ctx: int) -> Tensor | None:
        """Those for a context of so many tokens."""
        if self.scaling.scaling != "longrope":
            return self.rope_freqs.weight.tensor
        long = n_ctx > self.scaling.n_ctx_short
        return (self.rope_factors_long if long else self.rope_factors_short).weight.tensor

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        """x (head, n_head, n_tokens), turned by the tokens' positions."""
        return self._rotate(x, g.positions, g.n_ctx, self.scaling.attn_factor, f"rope-{self.il}")

    def turn(self, keys: Tensor, positions: Tensor, n_ctx: int) -> Tensor:
        """Keys as a cache holds them (head, n_head, n), turned by further positions.

        They have their magnitude already. llama.cpp gives it to all of them again at each shift.
        """
        magnitude = 1.0 / (1.0 - 0.1 * math.log(self.freq_scale)) if self.scaling.ext_factor else 1.0
        return self._rotate(keys, positions, n_ctx, magnitude, f"k_shift-{self.il}")

    def _rotate(self, x: Tensor, positions: Tensor, n_ctx: int, attn_factor: float, name: str) -> Tensor:
        scaling = self.scaling
        return ops.rope(
            x, positions, self.n_rot, self.mode, factors=self.factors(n_ctx), n_ctx_orig=scaling.n_ctx_orig,
            freq_base=self.freq_base, freq_scale=self.freq_scale, ext_factor=scaling.ext_factor,
            attn_factor=attn_factor, beta_fast=scaling.beta_fast, beta_slow=scaling.beta_slow, name=name,
        )  # fmt: skip
