"""A model's hyper-parameters, read from GGUF metadata and checked. Knows keys and numbers; no tensor and no device.

Keys and their defaults follow llama.cpp (llama-arch.cpp, llama-model.cpp: load_hparams).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyggml.errors import ModelError

ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")
MAX_LAYERS = 512
MAX_EXPERTS = 1024
MAX_NUMBER = (1 << 31) - 1  # an op's parameters are i32
F32_MAX = float(np.finfo(np.float32).max)  # and f32


@dataclass(frozen=True)
class Config:
    """Sizes in elements. `rope_freq_scale` multiplies positions: 1 / the file's scaling factor, also where `rope_scaling`
    is none; RopeOptions.apply makes of it what counts."""

    architecture: str
    name: str
    n_ctx_train: int
    n_embd: int
    n_layer: int
    n_ff: int
    n_expert: int  # 0: one feed-forward network a layer
    n_expert_used: int
    n_head: int
    n_head_kv: int
    n_embd_head_k: int
    n_embd_head_v: int
    n_rot: int
    rms_eps: float
    rope_scaling: str
    rope_freq_base: float
    rope_freq_scale: float
    rope_ext_factor: float  # how much of yarn; -1: all of it where it is the scaling
    rope_attn_factor: float
    rope_beta_fast: float
    rope_beta_slow: float
    rope_n_ctx_orig: int
    rope_n_ctx_short: int  # longrope: in a larger context the factors for long ones count

    @property
    def n_embd_k_gqa(self) -> int:
        """Elements of K for one token: all heads."""
        return self.n_embd_head_k * self.n_head_kv

    @property
    def n_embd_v_gqa(self) -> int:
        return self.n_embd_head_v * self.n_head_kv


class Keys:
    """Typed look-ups under `<architecture>.`; each error names the key."""

    def __init__(self, metadata: Mapping[str, Any], architecture: str) -> None:
        self.metadata = metadata
        self.architecture = architecture

    def _find(self, key: str) -> tuple[str, Any]:
        full = f"{self.architecture}.{key}"
        return full, self.metadata.get(full)

    def u32(self, key: str, default: int | None = None, least: int = 1) -> int:
        """An integer, or an array of equal integers (one a layer)."""
        full, value = self._find(key)
        if value is None:
            if default is None:
                raise ModelError(f"key {full} is missing")
            return default
        if isinstance(value, np.ndarray | list):
            items = value.tolist() if isinstance(value, np.ndarray) else value
            distinct = {item if isinstance(item, int) else repr(item) for item in items}
            if len(distinct) != 1:
                raise ModelError(f"key {full}: {len(distinct)} different values; layers of unequal size are unknown")
            value = distinct.pop()
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MAX_NUMBER:
            raise ModelError(f"key {full} is {value!r:.60}, must be an integer from {least} to {MAX_NUMBER}")
        return value

    def f32(self, key: str, default: float | None = None, positive: bool = True) -> float:
        full, value = self._find(key)
        if value is None:
            if default is None:
                raise ModelError(f"key {full} is missing")
            return default
        if isinstance(value, bool) or not isinstance(value, float | int) or not -F32_MAX <= value <= F32_MAX:
            raise ModelError(f"key {full} is {value!r:.60}, must be a finite number of 32 bits")
        if positive and value <= 0:
            raise ModelError(f"key {full} is {value!r}, must be positive")
        return float(value)

    def choice(self, key: str, choices: tuple[str, ...], default: str) -> str:
        full, value = self._find(key)
        if value is None:
            return default
        if value not in choices:
            raise ModelError(f"key {full} is {value!r:.60}, known are {', '.join(choices)}")
        return str(value)


def read_config(metadata: Mapping[str, Any], architecture: str) -> Config:
    """The hyper-parameters of a llama-like model. Raises ModelError naming the key."""
    keys = Keys(metadata, architecture)
    n_expert = keys.u32("expert_count", 0, least=0)
    n_expert_used = keys.u32("expert_used_count", 0, least=0)
    if n_expert > MAX_EXPERTS:
        raise ModelError(f"key {architecture}.expert_count is {n_expert}, at most {MAX_EXPERTS} are possible")
    if n_expert_used > n_expert or (n_expert and not n_expert_used):
        raise ModelError(f"key {architecture}.expert_used_count is {n_expert_used}, there are {n_expert} experts")
    n_embd = keys.u32("embedding_length")
    n_head = keys.u32("attention.head_count")
    n_head_kv = keys.u32("attention.head_count_kv", n_head)
    if n_head % n_head_kv:
        raise ModelError(f"key {architecture}.attention.head_count_kv is {n_head_kv}, no divisor of the {n_head} heads")
    n_layer = keys.u32("block_count")
    if n_layer > MAX_LAYERS:
        raise ModelError(f"key {architecture}.block_count is {n_layer}, at most {MAX_LAYERS} are possible")
    head_k = keys.u32("attention.key_length", n_embd // n_head)
    head_v = keys.u32("attention.value_length", n_embd // n_head)
    if not head_k or not head_v:
        raise ModelError(
            f"key {architecture}.attention.head_count is {n_head}, more than the {n_embd} elements they share"
        )
    n_rot = keys.u32("rope.dimension_count", head_k)
    if n_rot > head_k or n_rot % 2:
        raise ModelError(f"key {architecture}.rope.dimension_count is {n_rot}, must be even and at most {head_k}")
    n_ctx_train = keys.u32("context_length")
    scaling = keys.choice("rope.scaling.type", ROPE_SCALINGS, "linear")
    # the older key is read when the newer one is missing; 0 stands for "no scaling"
    factor = keys.f32("rope.scaling.factor", keys.f32("rope.scale_linear", 0.0, positive=False), positive=False)
    if factor < 0:
        raise ModelError(f"key {architecture}.rope.scaling.factor is {factor}, must not be negative")
    if factor and factor < 1 / F32_MAX:
        raise ModelError(f"key {architecture}.rope.scaling.factor is {factor}, must be 0 or at least {1 / F32_MAX:.1e}")
    return Config(
        architecture=architecture,
        name=str(metadata.get("general.name", "")),
        n_ctx_train=n_ctx_train,
        n_embd=n_embd,
        n_layer=n_layer,
        n_ff=keys.u32("feed_forward_length"),
        n_expert=n_expert,
        n_expert_used=n_expert_used,
        n_head=n_head,
        n_head_kv=n_head_kv,
        n_embd_head_k=head_k,
        n_embd_head_v=head_v,
        n_rot=n_rot,
        rms_eps=keys.f32("attention.layer_norm_rms_epsilon"),
        rope_freq_base=keys.f32("rope.freq_base", 10000.0),
        rope_scaling=scaling,
        rope_freq_scale=1.0 / factor if factor else 1.0,
        rope_ext_factor=-1.0,
        rope_attn_factor=keys.f32("rope.scaling.attn_factor", 1.0),
        rope_beta_fast=32.0,
        rope_beta_slow=1.0,
        rope_n_ctx_orig=keys.u32("rope.scaling.original_context_length", n_ctx_train),
        rope_n_ctx_short=keys.u32("rope.scaling.original_context_length", n_ctx_train),
    )
