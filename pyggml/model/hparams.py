"""A model's hyper-parameters, read from GGUF metadata and checked. Knows keys and numbers; no tensor and no device.

Keys and their defaults follow llama.cpp (llama-arch.cpp, llama-model.cpp: load_hparams).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from pyggml.errors import ModelError
from pyggml.model.keys import Keys
from pyggml.model.rope_options import RopeOptions, RopeScaling

MAX_LAYERS = 512
MAX_EXPERTS = 1024


class Hparams(Keys):
    """What nearly every architecture has; an architecture looks further keys up itself (u32, f32, ...).

    Sizes in elements. What may differ from layer to layer is asked for by the layer's number.

    architecture, name   general.architecture and general.name
    n_ctx_train, n_embd, n_layer, n_expert, n_expert_used
    n_rot                elements of a head that are rotated
    rope                 how positions are scaled, with what the user said in place of the file
    """

    def __init__(self, metadata: Mapping[str, Any], architecture: str, rope: RopeOptions | None = None) -> None:
        """Raises ModelError naming the key."""
        super().__init__(metadata, architecture)
        self.name = str(metadata.get("general.name", ""))
        self.n_expert = self.u32("expert_count", 0, least=0)
        self.n_expert_used = self.u32("expert_used_count", 0, least=0)
        if self.n_expert > MAX_EXPERTS:
            raise ModelError(f"key {architecture}.expert_count is {self.n_expert}, at most {MAX_EXPERTS} are possible")
        if self.n_expert_used > self.n_expert or (self.n_expert and not self.n_expert_used):
            raise ModelError(
                f"key {architecture}.expert_used_count is {self.n_expert_used}, there are {self.n_expert} experts"
            )
        self.n_embd = self.u32("embedding_length")
        n_layer = self.n_layer = self.u32("block_count")
        if n_layer > MAX_LAYERS:
            raise ModelError(f"key {architecture}.block_count is {n_layer}, at most {MAX_LAYERS} are possible")
        self._n_head = self.each_u32("attention.head_count", n_layer)
        self._n_head_kv = self.each_u32("attention.head_count_kv", n_layer, self._n_head)
        for n_head, n_head_kv in set(zip(self._n_head, self._n_head_kv, strict=True)):
            if n_head % n_head_kv:
                raise ModelError(
                    f"key {architecture}.attention.head_count_kv is {n_head_kv}, must divide head_count ({n_head})"
                )
        self._head_k = self.u32("attention.key_length", self.n_embd // self._n_head[0])
        self._head_v = self.u32("attention.value_length", self.n_embd // self._n_head[0])
        if not self._head_k or not self._head_v:
            raise ModelError(
                f"key {architecture}.attention.head_count is {self._n_head[0]}, more than the {self.n_embd} elements "
                "they share"
            )
        n_rot = self.n_rot = self.u32("rope.dimension_count", self._head_k)
        if n_rot > self._head_k or n_rot % 2:
            raise ModelError(
                f"key {architecture}.rope.dimension_count is {n_rot}, must be even and at most {self._head_k}"
            )
        self.n_ctx_train = self.u32("context_length")
        self._n_ff = self.each_u32("feed_forward_length", n_layer)
        self.rope = (rope or RopeOptions()).apply(RopeScaling.read(self, self.n_ctx_train))

    @cached_property
    def rms_eps(self) -> float:
        """What RMS norms add to the mean of squares."""
        return self.f32("attention.layer_norm_rms_epsilon")

    @cached_property
    def norm_eps(self) -> float:
        """What norms with a mean add to the variance."""
        return self.f32("attention.layer_norm_epsilon")

    def n_head(self, il: int = 0) -> int:
        return self._n_head[il]

    def n_head_kv(self, il: int = 0) -> int:
        return self._n_head_kv[il]

    def n_ff(self, il: int = 0) -> int:
        return self._n_ff[il]

    def head_k(self, il: int = 0) -> int:
        return self._head_k

    def head_v(self, il: int = 0) -> int:
        return self._head_v

    def window(self, il: int, pattern: int) -> int | None:
        """Tokens that layer `il` sees where every `pattern`-th layer sees all (None) and the others a window; 0: all do
        (llama-hparams.cpp: set_swa_pattern)."""
        if pattern == 0 or il % pattern == pattern - 1:
            return None
        return self.u32("attention.sliding_window")

    def text(self) -> str:
        """All numbers that keys and values of a cache depend on. A state that was saved holds a digest of it, so it stays
        as it has been since the first version."""

        def uniform(values: tuple[int, ...]) -> object:
            return values[0] if len(set(values)) == 1 else values

        rope = self.rope
        values: dict[str, object] = {
            "architecture": self.architecture,
            "name": self.name,
            "n_ctx_train": self.n_ctx_train,
            "n_embd": self.n_embd,
            "n_layer": self.n_layer,
            "n_ff": uniform(self._n_ff),
            "n_expert": self.n_expert,
            "n_expert_used": self.n_expert_used,
            "n_head": uniform(self._n_head),
            "n_head_kv": uniform(self._n_head_kv),
            "n_embd_head_k": self._head_k,
            "n_embd_head_v": self._head_v,
            "n_rot": self.n_rot,
            "rms_eps": self.f32("attention.layer_norm_rms_epsilon", 0.0, positive=False),
            "rope_scaling": rope.scaling,
            "rope_freq_base": rope.freq_base,
            "rope_freq_scale": rope.freq_scale,
            "rope_ext_factor": rope.ext_factor,
            "rope_attn_factor": rope.attn_factor,
            "rope_beta_fast": rope.beta_fast,
            "rope_beta_slow": rope.beta_slow,
            "rope_n_ctx_orig": rope.n_ctx_orig,
            "rope_n_ctx_short": rope.n_ctx_short,
        }
        return f"Config({', '.join(f'{name}={value!r}' for name, value in values.items())})"
