"""A model's hyper-parameters, read from GGUF metadata and checked. Knows keys and numbers; no tensor and no device.

Keys and their defaults follow llama.cpp (llama-arch.cpp, llama-model.cpp: load_hparams).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
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
    n_ctx_train, n_embd, n_expert, n_expert_used
    n_layer              layers that a token goes through; n_layer_all counts those behind them that a draft would use
    n_rot                elements of a head that are rotated
    rope                 how positions are scaled: rope_in_file, with what the user said, rope_options, in place of it
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
        n_layer = self.n_layer_all = self.u32("block_count")
        if n_layer > MAX_LAYERS:
            raise ModelError(f"key {architecture}.block_count is {n_layer}, at most {MAX_LAYERS} are possible")
        behind = self.u32("nextn_predict_layers", 0, least=0)
        if behind >= n_layer:
            raise ModelError(f"key {architecture}.nextn_predict_layers is {behind}, there are {n_layer} layers")
        self.n_layer = n_layer - behind
        self._n_head = self.each_u32("attention.head_count", n_layer, 0, least=0)
        self._n_head_kv = self.each_u32("attention.head_count_kv", n_layer, self._n_head, least=0)
        for n_head, n_head_kv in set(zip(self._n_head, self._n_head_kv, strict=True)):
            if n_head_kv and n_head % n_head_kv:
                raise ModelError(
                    f"key {architecture}.attention.head_count_kv is {n_head_kv}, must divide head_count ({n_head})"
                )
        most = next((n for n in self._n_head if n), 0)
        head = self.n_embd // most if most else 0
        self._head_k = self.u32("attention.key_length", head, least=0)
        self._head_v = self.u32("attention.value_length", head, least=0)
        if most and not (self._head_k and self._head_v):
            raise ModelError(
                f"key {architecture}.attention.head_count is {most}, more than the {self.n_embd} elements they share"
            )
        n_rot = self.n_rot = self.u32("rope.dimension_count", self._head_k, least=0)
        if n_rot > self._head_k or n_rot % 2:
            raise ModelError(
                f"key {architecture}.rope.dimension_count is {n_rot}, must be even and at most {self._head_k}"
            )
        self.n_ctx_train = self.u32("context_length")
        self._n_ff = self.each_u32("feed_forward_length", n_layer, 0, least=0)
        self.rope_options, self.rope_in_file = rope or RopeOptions(), RopeScaling.read(self, self.n_ctx_train)
        self.rope = self.scaled_rope()

    def scaled_rope(self, **more: Any) -> RopeScaling:
        """How positions are scaled, where an architecture reads further keys: their values, by field of RopeScaling."""
        return self.rope_options.apply(replace(self.rope_in_file, **more))

    def yarn_betas(self, fast: float = 32.0, slow: float = 1.0) -> dict[str, float]:
        """Between which pairs yarn changes over, where an architecture reads it: for `scaled_rope`."""
        return {
            "beta_fast": self.f32("rope.scaling.yarn_beta_fast", fast, positive=False),
            "beta_slow": self.f32("rope.scaling.yarn_beta_slow", slow, positive=False),
        }

    @cached_property
    def rms_eps(self) -> float:
        """What RMS norms add to the mean of squares."""
        return self.f32("attention.layer_norm_rms_epsilon")

    @cached_property
    def norm_eps(self) -> float:
        """What norms with a mean add to the variance."""
        return self.f32("attention.layer_norm_epsilon")

    @cached_property
    def attention_scale(self) -> float | None:
        """What products of queries and keys are multiplied by; None: 1 / sqrt(head size)."""
        return self.f32("attention.scale", 0.0, positive=False) or None

    @cached_property
    def max_bias(self) -> float:
        """Of ALiBi: how fast the scores of the first head fall with the distance; 0: they do not."""
        return self.f32("attention.max_alibi_bias", 0.0, positive=False)

    @property
    def has_sections(self) -> bool:
        """Whether positions have several axes (llama-hparams.h: use_mrope)."""
        value = self.find("rope.dimension_sections")[1]
        return value is not None and any(self.items(value)[:2])

    def n_head(self, il: int = 0) -> int:
        """Heads of queries of a layer. Raises ModelError where the file says 0."""
        return self._positive("attention.head_count", self._n_head[il])

    def n_head_kv(self, il: int = 0) -> int:
        """Heads of keys and values of a layer. Raises ModelError where the file says 0."""
        return self._positive("attention.head_count_kv", self._n_head_kv[il])

    def n_ff(self, il: int = 0) -> int:
        """Elements inside the feed-forward network of a layer. Raises ModelError where the file says 0."""
        return self._positive("feed_forward_length", self._n_ff[il])

    def has_attention(self, il: int) -> bool:
        """Whether the layer has heads: in files of models that mix, the others have 0."""
        return self._n_head_kv[il] > 0

    def has_queries(self, il: int) -> bool:
        """Whether the layer has heads of queries."""
        return self._n_head[il] > 0

    def has_ffn(self, il: int) -> bool:
        """Whether the layer has a feed-forward network."""
        return self._n_ff[il] > 0

    def head_k(self, il: int = 0) -> int:
        """Elements of a head of queries or keys."""
        return self._head_k

    def head_v(self, il: int = 0) -> int:
        """Elements of a head of values."""
        return self._head_v

    def _positive(self, key: str, value: int) -> int:
        full, given = self.find(key)
        return value or self._integer(full, None if given is None else 0, None, 1)

    def go_round(self, times: int) -> None:
        """Let the layers be gone through so often: as many layers more, with the numbers of the first ones."""
        self.n_layer *= times
        self.n_layer_all = self.n_layer
        self._n_head, self._n_head_kv, self._n_ff = self._n_head * times, self._n_head_kv * times, self._n_ff * times

    @cached_property
    def pooled(self) -> PoolingKeys:
        """What the file says of embeddings."""
        return PoolingKeys(self)

    @cached_property
    def windows(self) -> Windows:
        """Sliding windows."""
        return Windows(self)

    @cached_property
    def expert(self) -> ExpertKeys:
        """Numbers of experts, beyond how many there are."""
        return ExpertKeys(self)

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


class Windows:
    """Which layers see all tokens and which a window of the last ones (llama-model.cpp: load_swa_pattern).

    size            tokens that a token sees there, itself among them; 0: no layer has a window
    head_k, head_v  elements of a head in layers with a window, and n_rot: those that are rotated
    """

    def __init__(self, hp: Hparams) -> None:
        self.hp = hp
        self.size = hp.u32("attention.sliding_window", 0, least=0)
        self.head_k = hp.u32("attention.key_length_swa", hp.head_k())
        self.head_v = hp.u32("attention.value_length_swa", hp.head_v())
        self.n_rot = hp.u32("rope.dimension_count_swa", min(hp.n_rot, self.head_k), least=0)
        if self.n_rot > self.head_k or self.n_rot % 2:
            key = f"{hp.architecture}.rope.dimension_count_swa"
            raise ModelError(f"key {key} is {self.n_rot}, must be even and at most {self.head_k}")

    def freq_base(self, otherwise: float | None = None) -> float:
        """Of rotary positions in layers with a window, where the file has one for them; else `otherwise`, or the file's."""
        return self.hp.f32("rope.freq_base_swa", otherwise or self.hp.rope_in_file.freq_base)

    def of(self, il: int, period: int, dense_first: bool = False) -> int | None:
        """The window of layer `il`; None: it sees all. Unless the file says which, all but one of every `period` layers
        have one: but the last, or with `dense_first` the first; with period 0 all have."""
        return (self.size or None) if self.pattern(period, dense_first)[il] else None

    def pattern(self, period: int, dense_first: bool = False) -> tuple[bool, ...]:
        """Of each layer, whether it has a window."""
        hp, key = self.hp, "attention.sliding_window_pattern"
        value = hp.find(key)[1]
        if value is not None and not isinstance(value, int):
            return hp.each_flag(key, hp.n_layer_all)
        period = hp.u32(key, period, least=0)
        apart = 0 if dense_first else period - 1
        return tuple(period == 0 or il % period != apart for il in range(hp.n_layer_all))


class ExpertKeys:
    """n_ff          elements between the matrices of an expert, or 0: the file does not say
    n_ff_shared   and of the expert that every token uses, or 0
    n_shared      experts that every token uses
    scale         what shares are multiplied by
    renormalise   whether shares are divided by their sum, as the file says
    gating        softmax, sigmoid, softmax_weight or sqrt_softplus; None: the file does not say
    n_dense       first layers that have no experts
    limits, limits_shared     of each layer: what gated networks are cut to, experts and those that every token uses; 0: not
    n_groups, n_groups_used   experts are chosen from so many of so many groups; 0 and 1: from all
    """

    GATINGS = (None, "softmax", "sigmoid", "softmax_weight", "sqrt_softplus")

    def __init__(self, hp: Hparams) -> None:
        self._n_ff = hp.each_u32("expert_feed_forward_length", hp.n_layer_all, 0, least=0)
        self.n_ff_shared = hp.u32("expert_shared_feed_forward_length", 0, least=0)
        self.n_shared = hp.u32("expert_shared_count", 0, least=0)
        self.scale = hp.f32("expert_weights_scale", 0.0, positive=False) or 1.0
        self.renormalise = hp.boolean("expert_weights_norm", False)
        number = hp.u32("expert_gating_func", 0, least=0)
        if number >= len(self.GATINGS):
            raise ModelError(
                f"key {hp.architecture}.expert_gating_func is {number}, known are 0 to {len(self.GATINGS) - 1}"
            )
        self.gating = self.GATINGS[number]
        self.n_dense = hp.u32("leading_dense_block_count", 0, least=0)
        self.limits = hp.each_f32("swiglu_clamp_exp", hp.n_layer_all, 0.0)
        self.limits_shared = hp.each_f32("swiglu_clamp_shexp", hp.n_layer_all, 0.0)
        self.n_groups = hp.u32("expert_group_count", 0, least=0)
        self.n_groups_used = hp.u32("expert_group_used_count", 0, least=0)
        if self.n_groups > 1:
            if hp.n_expert % self.n_groups:
                raise ModelError(
                    f"key {hp.architecture}.expert_group_count is {self.n_groups}, must divide the {hp.n_expert} experts"
                )
            if not 0 < self.n_groups_used < self.n_groups:
                raise ModelError(
                    f"key {hp.architecture}.expert_group_used_count is {self.n_groups_used}, must be from 1 to "
                    f"{self.n_groups - 1}"
                )

    def n_ff(self, il: int) -> int:
        """Elements inside each expert of a layer."""
        return self._n_ff[il]


class PoolingKeys:
    """pooling   how the tokens' embeddings become one of a text, or "": the file does not say
    ranked    how, where a classifier follows
    activation   the classifier's
    n_classes    its results
    causal    whether tokens see those before them alone
    n_types   kinds of tokens that the vocabulary tells apart
    n_out     elements of an embedding that a matrix at the end makes
    """

    def __init__(self, hp: Hparams) -> None:
        self.pooling, self.ranked = (self._pooling(hp, key) for key in ("pooling_type", "classifier.pooling_type"))
        self.activation = hp.choice("classifier.activation", ("gelu", "silu", "tanh"), "")
        full, labels = hp.find("classifier.output_labels")
        if labels is not None and not _texts(labels):
            raise ModelError(f"key {full} is {labels!r:.60}, must be an array of texts")
        self.n_classes = 1 if labels is None else len(labels) or 1
        self.causal = hp.boolean("attention.causal", True)
        key = "tokenizer.ggml.token_type_count"
        n_types = hp.metadata.get(key, 0)
        if isinstance(n_types, bool) or not isinstance(n_types, int) or n_types < 0:
            raise ModelError(f"key {key} is {n_types!r:.60}, must be an integer from 0")
        self.n_types = n_types
        self.n_out = hp.u32("embedding_length_out", 0, least=0) or hp.n_embd

    @staticmethod
    def _pooling(hp: Hparams, key: str) -> str:
        full, value = hp.find(key)
        if value is None or (isinstance(value, int) and value in (-1, 0xFFFFFFFF)):  # unspecified
            return ""
        names = ("none", "mean", "cls", "last", "rank")  # enum llama_pooling_type
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < len(names):
            raise ModelError(f"key {full} is {value!r:.60}, known are 0 to {len(names) - 1}")
        return names[value]


def _texts(value: Any) -> bool:
    """Whether a value is an array of strings."""
    return isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(v, str) for v in value)
