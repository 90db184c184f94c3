"""Rotary positions of a layer: the op's parameters, with what the file and the user say, and frequency factors."""

from __future__ import annotations

import math

from pyggml import ops
from pyggml.errors import ModelError
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.module import Module, Weight
from pyggml.model.rope_options import RopeScaling
from pyggml.tensor import Tensor


class Factors(Module):
    """What the frequencies are divided by: one number a pair, the same for all layers."""

    def __init__(self, n: int) -> None:
        self.weight = Weight(n, required=False, shared=True)


class Rope(Module):
    """Rotates the first `n_rot` elements of each head by the token's position.

    mode        ops.ROPE_NORMAL (neighbours are a pair) or ops.ROPE_NEOX (halves of the head are); ops.ROPE_MROPE and
                ops.ROPE_IMROPE turn by four positions, of which text has three equal ones and a 0
    freq_base, freq_scale   in place of those in use for the model: layers with a window may have their own
    scaled      whether what the file says of yarn counts here
    factors     which frequency factors count: "none", "one", or "short" and long ones; by default as the file's scaling says
    n_factors   how many of them the file has, more than are used; by default as many as pairs
    scaling     in place of the model's: of architectures that read further keys (Hparams.scaled_rope)
    """

    def __init__(
        self,
        hp: Hparams,
        mode: int,
        *,
        n_rot: int | None = None,
        freq_base: float | None = None,
        freq_scale: float | None = None,
        scaled: bool = True,
        factors: str = "",
        n_factors: int | None = None,
        scaling: RopeScaling | None = None,
    ) -> None:
        self.scaling, self.mode = scaling or hp.rope, mode
        self.n_rot = hp.n_rot if n_rot is None else n_rot
        if not self.n_rot:
            raise ModelError(f"key {hp.architecture}.rope.dimension_count is 0, but elements of a head are rotated")
        self.freq_base = self.scaling.freq_base if freq_base is None else freq_base
        self.freq_scale = self.scaling.freq_scale if freq_scale is None else freq_scale
        self.ext_factor = self.scaling.ext_factor if scaled else 0.0
        self.attn_factor = self.scaling.attn_factor if scaled else 1.0
        self.n_pos = 4 if mode & ops.ROPE_MROPE else 1
        self.sections = sections(hp) if mode & ops.ROPE_MROPE else (0, 0, 0, 0)
        factors = factors or ("short" if self.scaling.scaling == "longrope" else "one")
        self.by_length = factors == "short"
        n_factors = n_factors or self.n_rot // 2
        self.rope_freqs = Factors(n_factors) if factors == "one" else None
        if self.by_length:
            self.rope_factors_short = Factors(n_factors)
            self.rope_factors_long = Factors(n_factors)

    @classmethod
    def windowed(
        cls,
        hp: Hparams,
        mode: int,
        window: int | None,
        *,
        base: float | None = None,
        scale: float | None = None,
        scaled: bool = True,
        factors: str = "",
    ) -> Rope:
        """Of a layer that may have a window. In those that have one the frequencies' base is the file's for windows, without
        one `base`, or the file's for all; their scale is `scale`, or the file's; and `scaled` and `factors` count there."""
        if not window:
            return cls(hp, mode)
        base = hp.windows.freq_base(base)
        scale = hp.rope_in_file.freq_scale if scale is None else scale
        n_rot = hp.windows.n_rot
        return cls(hp, mode, n_rot=n_rot, freq_base=base, freq_scale=scale, scaled=scaled, factors=factors)

    def factors(self, n_ctx: int) -> Tensor | None:
        """Those for a context of so many tokens."""
        if not self.by_length:
            return None if self.rope_freqs is None else self.rope_freqs.weight.tensor
        long = n_ctx > self.scaling.n_ctx_short
        return (self.rope_factors_long if long else self.rope_factors_short).weight.tensor

    def __call__(self, g: GraphBuilder, x: Tensor, offset: int = 0) -> Tensor:
        """x (head, n_head, n_tokens), of each head the n_rot elements from `offset` on turned by the tokens' positions."""
        positions = g.positions4 if self.mode & ops.ROPE_MROPE else g.positions
        return self._rotate(x, positions, g.n_ctx, self.attn_factor, offset, f"rope-{self.il}")

    def at(self, g: GraphBuilder, x: Tensor, positions: Tensor, offset: int = 0, *, back: bool = False) -> Tensor:
        """x (head, n_head, n), turned by these positions, I32 (n), or turned back by them."""
        return self._rotate(x, positions, g.n_ctx, self.attn_factor, offset, f"rope-{self.il}", back)

    def turn(self, keys: Tensor, positions: Tensor, n_ctx: int, offset: int = 0) -> Tensor:
        """Keys as a cache holds them (head, n_head, n), turned by further positions.

        They have their magnitude already. llama.cpp gives it to all of them again at each shift.
        """
        magnitude = 1.0 / (1.0 - 0.1 * math.log(self.freq_scale)) if self.ext_factor else 1.0
        return self._rotate(keys, positions, n_ctx, magnitude, offset, f"k_shift-{self.il}")

    def _rotate(
        self, x: Tensor, positions: Tensor, n_ctx: int, attn_factor: float, offset: int, name: str, back: bool = False
    ) -> Tensor:
        scaling = self.scaling
        return ops.rope(
            x, positions, self.n_rot, self.mode, factors=self.factors(n_ctx), n_ctx_orig=scaling.n_ctx_orig,
            freq_base=self.freq_base, freq_scale=self.freq_scale, ext_factor=self.ext_factor, sections=self.sections,
            attn_factor=attn_factor, beta_fast=scaling.beta_fast, beta_slow=scaling.beta_slow, offset=offset, name=name, back=back,
        )  # fmt: skip


def sections(hp: Hparams) -> tuple[int, int, int, int]:
    """How many pairs follow each of the four positions."""
    full, value = hp.find("rope.dimension_sections")
    items = hp.items(value) if value is not None else None
    if items is None or not 3 <= len(items) <= 4 or not all(isinstance(n, int) and 0 <= n <= hp.n_rot for n in items):
        raise ModelError(f"key {full} is {value!r:.60}, must be 4 numbers of pairs")
    a, b, c, d = (*items, 0)[:4]
    return a, b, c, d
