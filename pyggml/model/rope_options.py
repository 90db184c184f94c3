"""What a user may say about rotary positions in place of the model file.

Owns the rule by which llama.cpp joins both (llama-context.cpp: the constructor of llama_context); must not know a graph.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

from pyggml.errors import ModelError
from pyggml.model.config import F32_MAX, MAX_NUMBER, Config


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
            least = 0.0 if field.name in ("freq_base", "freq_scale", "n_ctx_orig") else -math.inf
            if field.name != "scaling" and not (math.isfinite(value) and value >= least):
                raise ModelError(
                    f"rope {field.name} {value}: must be a finite number" + (" from 0" if not least else "")
                )
        if not isinstance(self.n_ctx_orig, int):
            raise ModelError(f"rope n_ctx_orig {self.n_ctx_orig}: must be a whole number")

    def apply(self, config: Config) -> Config:
        """The hyper-parameters in use."""
        scaling = self.scaling or config.rope_scaling
        scale = self.freq_scale or config.rope_freq_scale
        if scaling == "none":
            scale = 1.0
        ext = self.ext_factor if self.ext_factor >= 0 else float(scaling == "yarn")
        attn = self.attn_factor if self.attn_factor >= 0 else 1.0
        if ext:
            whole = 1.0 + 0.1 * math.log(1 / scale)
            attn = max(whole, 1.0) / whole if whole else math.inf
        applied = replace(
            config,
            rope_freq_base=self.freq_base or config.rope_freq_base,
            rope_freq_scale=scale,
            rope_ext_factor=ext,
            rope_attn_factor=attn * config.rope_attn_factor,
            rope_beta_fast=self.beta_fast if self.beta_fast >= 0 else config.rope_beta_fast,
            rope_beta_slow=self.beta_slow if self.beta_slow >= 0 else config.rope_beta_slow,
            rope_n_ctx_orig=self.n_ctx_orig or config.rope_n_ctx_orig,
        )
        for name in ("freq_base", "freq_scale", "ext_factor", "attn_factor", "beta_fast", "beta_slow", "n_ctx_orig"):
            value, most = getattr(applied, f"rope_{name}"), MAX_NUMBER if name == "n_ctx_orig" else F32_MAX
            if not -most <= value <= most:
                raise ModelError(f"rope {name} would be {value}, at most {most} is possible")
        return applied
