"""How positions are scaled: what the file says, and what a user may say in place of it.

Owns the rule by which llama.cpp joins both (llama-context.cpp: the constructor of llama_context).
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, fields, replace

from pyggml.errors import ModelError
from pyggml.model.keys import F32_MAX, MAX_NUMBER, Keys

SCALINGS = ("none", "linear", "yarn", "longrope")


@dataclass(frozen=True)
class RopeScaling:
    """`freq_scale` multiplies positions: 1 / the file's scaling factor, also where `scaling` is none; RopeOptions.apply
    makes of it what counts."""

    scaling: str
    freq_base: float
    freq_scale: float
    ext_factor: float  # how much of yarn; -1: all of it where it is the scaling
    attn_factor: float
    beta_fast: float
    beta_slow: float
    n_ctx_orig: int
    n_ctx_short: int  # longrope: in a larger context the factors for long ones count
    yarn_attn_factor: float = 1.0  # what counts beside attn_factor without yarn
    log_multiplier: float = 0.0  # of yarn (mscale_all_dim): what attention itself makes up for; 0: the model knows none
    log_numerator: float = 1.0  # and the one (mscale) that is divided by it

    @classmethod
    def read(cls, keys: Keys, n_ctx_train: int) -> RopeScaling:
        """Of the file. Raises ModelError naming the key."""
        architecture = keys.architecture
        scaling = keys.choice("rope.scaling.type", SCALINGS, "linear")
        # the older key is read when the newer one is missing; 0 stands for "no scaling"
        factor = keys.f32("rope.scaling.factor", keys.f32("rope.scale_linear", 0.0, positive=False), positive=False)
        if factor < 0:
            raise ModelError(f"key {architecture}.rope.scaling.factor is {factor}, must not be negative")
        if factor and factor < 1 / F32_MAX:
            raise ModelError(
                f"key {architecture}.rope.scaling.factor is {factor}, must be 0 or at least {1 / F32_MAX:.1e}"
            )
        return cls(
            scaling=scaling,
            freq_base=keys.f32("rope.freq_base", 10000.0),
            freq_scale=1.0 / factor if factor else 1.0,
            ext_factor=-1.0,
            attn_factor=keys.f32("rope.scaling.attn_factor", 1.0),
            beta_fast=32.0,
            beta_slow=1.0,
            n_ctx_orig=keys.u32("rope.scaling.original_context_length", n_ctx_train),
            n_ctx_short=keys.u32("rope.scaling.original_context_length", n_ctx_train),
        )


@dataclass(frozen=True)
class RopeOptions:
    """As in llama_context_params; the defaults leave everything to the file."""

    scaling: str | None = None  # none, linear or yarn
    freq_base: float = 0.0
    freq_scale: float = 0.0  # 1 / the factor by which the context grows
    n_ctx_orig: int = 0  # of yarn: what the model was trained on
    ext_factor: float = -1.0  # how much of yarn
    attn_factor: float = -1.0
    beta_fast: float = -1.0
    beta_slow: float = -1.0

    def __post_init__(self) -> None:
        """Raises ModelError for numbers that no positions can be turned by."""
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0.0 if field.name in ("freq_base", "freq_scale", "n_ctx_orig") else -sys.float_info.max
            if field.name != "scaling" and not least <= value <= sys.float_info.max:
                raise ModelError(
                    f"rope {field.name} {value}: must be a finite number" + (" from 0" if not least else "")
                )
        if not isinstance(self.n_ctx_orig, int):
            raise ModelError(f"rope n_ctx_orig {self.n_ctx_orig}: must be a whole number")

    def apply(self, file: RopeScaling) -> RopeScaling:
        """The numbers in use."""
        scaling = self.scaling or file.scaling
        scale = self.freq_scale or file.freq_scale
        if scaling == "none":
            scale = 1.0
        ext = self.ext_factor if self.ext_factor >= 0 else file.ext_factor
        ext = ext if ext >= 0 else float(scaling == "yarn")
        attn = self.attn_factor if self.attn_factor >= 0 else file.yarn_attn_factor
        if ext:
            attn = _magnitude(1 / scale, file.log_numerator if file.log_multiplier else 1.0)
            if file.log_multiplier:
                attn /= _magnitude(1 / scale, file.log_multiplier)
            whole = 1.0 + 0.1 * math.log(1 / scale)  # the op multiplies by it
            attn = attn / whole if whole else math.inf
        applied = replace(
            file,
            freq_base=self.freq_base or file.freq_base,
            freq_scale=scale,
            ext_factor=ext,
            attn_factor=attn * file.attn_factor,
            beta_fast=self.beta_fast if self.beta_fast >= 0 else file.beta_fast,
            beta_slow=self.beta_slow if self.beta_slow >= 0 else file.beta_slow,
            n_ctx_orig=self.n_ctx_orig or file.n_ctx_orig,
        )
        for name in ("freq_base", "freq_scale", "ext_factor", "attn_factor", "beta_fast", "beta_slow", "n_ctx_orig"):
            value, most = getattr(applied, name), MAX_NUMBER if name == "n_ctx_orig" else F32_MAX
            if not -most <= value <= most:
                raise ModelError(f"rope {name} would be {value}, at most {most} is possible")
        return applied


def _magnitude(factor: float, multiplier: float) -> float:
    """What queries and keys grow by in a context so many times larger."""
    return 1.0 if factor <= 1 else 1.0 + 0.1 * multiplier * math.log(factor)
