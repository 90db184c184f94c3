"""Attention with grouped queries, and what architectures vary in it (llama-graph.cpp: build_qkv, build_attn).

Owns the projections and the order of their nodes; where keys and values are kept is the memory's business.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyggml import ops
from pyggml.dtypes import GGMLType
from pyggml.errors import ModelError
from pyggml.memory import Need, SharedKV
from pyggml.memory.kv_tensors import KVLayer
from pyggml.memory.ubatch import Ubatch
from pyggml.memory.window import Window
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.layers import Remembers
from pyggml.model.linear import Linear
from pyggml.model.module import Module, Weight
from pyggml.model.norms import PlainRMSNorm, RMSNorm
from pyggml.model.rope import Rope
from pyggml.tensor import Tensor


class Sinks(Module):
    """A number a head that takes part in the soft max and in no sum; `required`: whether the file must have them."""

    def __init__(self, n_head: int, *, required: bool = True) -> None:
        self.weight = Weight(n_head, required=required)


class Attention(Remembers):
    """x (n_embd, n_tokens) -> the same. Biases count where the file has them, and one matrix attn_qkv may stand for three.

    rope        how queries and keys are turned; None: they know no position
    qk_norm     norms of queries and keys: "head" of each head, "row" of all heads together, "heads" of each head, with a
                weight for each; None: there are none
    norm        the class of these norms
    norm_last   they come after queries and keys are turned
    norm_needed whether the file must have them
    v_norm      whether values have a norm, of each head and without weights
    window      tokens that a token sees, itself among them; None: all before it. Heads of layers with a window may have a
                size of their own (Windows)
    symmetric   the window reaches as far ahead as back; without a cache alone
    shares      the number of the layer whose keys and values are read; None: it keeps its own
    k_as_v      keys, before norms and positions, are values too where the file has no matrix for values
    sinks       whether there are attention sinks: "must", "may" or None
    scale       of the products; default 1 / sqrt(head size)
    softcap     scores are softcap * tanh(scores / softcap); 0: as they are
    max_bias    of ALiBi; 0: scores do not fall with the distance
    clamp       queries, keys and values are cut to this on both sides; 0: they are not
    temperature what queries are multiplied by, by position
    """

    query_parts = 1
    """So many times the size of a head is what attn_q gives of it."""

    def __init__(
        self,
        hp: Hparams,
        il: int,
        *,
        rope: Rope | None,
        qk_norm: str | None = None,
        norm: Any = RMSNorm,
        norm_last: bool = False,
        norm_needed: bool = True,
        v_norm: bool = False,
        window: int | None = None,
        symmetric: bool = False,
        shares: int | None = None,
        k_as_v: bool = False,
        sinks: str | None = None,
        scale: float | None = None,
        softcap: float = 0.0,
        max_bias: float = 0.0,
        clamp: float = 0.0,
        temperature: Temperature | None = None,
    ) -> None:
        self.window, self.softcap, self.max_bias, self.clamp = window, softcap, max_bias, clamp
        self.symmetric = symmetric
        sizes = hp.windows if window else None
        self.head_k = hp.head_k(il) if sizes is None else sizes.head_k
        self.head_v = hp.head_v(il) if sizes is None else sizes.head_v
        self.head_q = self.query_parts * self.head_k
        self.n_head, self.n_head_kv = hp.n_head(il), hp.n_head_kv(il)
        self.scale = 1.0 / math.sqrt(self.head_k) if scale is None else scale
        n_q, n_k, n_v = self.head_q * self.n_head, self.head_k * self.n_head_kv, self.head_v * self.n_head_kv
        self.rope, self.shares, self.k_as_v = rope, shares, k_as_v
        self.attn_qkv = Linear(hp.n_embd, n_q + n_k + n_v, required=False)
        self.attn_q = Linear(hp.n_embd, n_q)
        if shares is None:
            self.attn_k = Linear(hp.n_embd, n_k)
            self.attn_v = Linear(hp.n_embd, n_v, required=not k_as_v)
        self.attn_output = Linear(self.head_v * self.n_head, hp.n_embd)
        self.qk_norm, self.norm_last = qk_norm, norm_last
        if qk_norm == "row":
            self.attn_q_norm = norm.of(hp, n_q, required=norm_needed)
            if shares is None:
                self.attn_k_norm = norm.of(hp, n_k, required=norm_needed)
        elif qk_norm is not None:
            each = qk_norm == "heads"
            self.attn_q_norm = norm.of(hp, self.head_k, heads=self.n_head if each else None, required=norm_needed)
            if shares is None:
                n_kv = self.n_head_kv if each else None
                self.attn_k_norm = norm.of(hp, self.head_k, heads=n_kv, required=norm_needed)
        self.v_norm = PlainRMSNorm.of(hp) if v_norm else None
        self.attn_sinks = Sinks(self.n_head, required=sinks == "must") if sinks else None
        self.temperature = temperature

    def need(self) -> Need:
        if self.shares is not None:
            return Need(shared=SharedKV(self.il, self.shares))
        turn, n_pos = (None, 1) if self.rope is None else (self.rope.turn, self.rope.n_pos)
        layer = KVLayer(self.il, self.head_k, self.head_v, self.n_head_kv, turn, n_pos=n_pos)
        return Need(layer, self.window, alibi=self.max_bias > 0)

    def wanted(self, tensors: Mapping[str, Any]) -> Iterator[Weight]:
        fused = self.attn_qkv.weight.name in tensors
        self.attn_q.weight.required = not fused
        if self.shares is None:
            self.attn_k.weight.required = not fused
            self.attn_v.weight.required = not fused and not self.k_as_v
        yield from super().wanted(tensors)
        if fused and self.attn_qkv.bias.name not in tensors:  # biases may be three beside one matrix
            yield from (matrix.bias for matrix in self._matrices)

    @property
    def _matrices(self) -> list[Linear]:
        """Of queries, keys and values."""
        return [self.attn_q] if self.shares is not None else [self.attn_q, self.attn_k, self.attn_v]

    def passed_over(self, tensors: Container[str]) -> Iterator[str]:
        """What a file may hold of the keys and values of a layer that reads another one's."""
        if self.shares is not None:
            prefix = self.attn_q.weight.name.removesuffix("attn_q.weight")
            yield from (f"{prefix}{name}.weight" for name in ("attn_k", "attn_v", "attn_k_norm"))

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        q, k, v = self.place(g, *self.project(g, x))
        sinks = None if self.attn_sinks is None or not self.attn_sinks.weight.there else self.attn_sinks.weight
        window = Window(self.window, symmetric=True) if self.window and self.symmetric else self.need().seen
        cur = g.attend(
            self.il, q, k, v, scale=self.scale, softcap=self.softcap, sinks=sinks, max_bias=self.max_bias, window=window
        )
        return self.back(g, x, cur)

    def back(self, g: GraphBuilder, x: Tensor, cur: Tensor) -> Tensor:
        """What attention found (head_v * n_head, n_tokens) -> (n_embd, n_tokens); `x` is what attention began with."""
        return g.linear(self.attn_output, cur)

    def place(
        self, g: GraphBuilder, q: Tensor, k: Tensor | None, v: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Norms and positions of queries and keys, norms of values."""
        each = self.qk_norm not in (None, "row")
        if each and not self.norm_last:
            q, k = self.attn_q_norm(g, q), self.attn_k_norm(g, k) if k is not None else None
        if v is not None and self.v_norm is not None:
            v = self.v_norm(g, v)
        if self.rope is not None:
            q, k = self.rope(g, q), self.rope(g, k) if k is not None else None
        if each and self.norm_last:
            q, k = self.attn_q_norm(g, q), self.attn_k_norm(g, k) if k is not None else None
        if self.temperature is not None:
            q = ops.mul(q, self.temperature.of(g), name=f"q_scaled-{self.il}")
        return q, k, v

    def project(self, g: GraphBuilder, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Queries (head_q, n_head, n_tokens), keys (head_k, n_head_kv, n_tokens), values (head_v, n_head_kv, n_tokens); of
        a layer that shares those of another one queries alone."""
        shapes = (self.head_q, self.n_head), (self.head_k, self.n_head_kv), (self.head_v, self.n_head_kv)
        if self.attn_qkv.weight.there:
            qkv, at, parts = g.linear(self.attn_qkv, x), 0, []
            alone = any(matrix.bias.there for matrix in self._matrices)
            qkv = qkv if alone else self._clamped(qkv)
            for (head, n), matrix in zip(shapes, self._matrices, strict=False):
                part = ops.view(qkv, (head * n, g.n_tokens), (qkv.nb[1],), at)
                if alone:
                    part = self._clamped(part if matrix.bias.tensor is None else ops.add(part, matrix.bias.tensor))
                parts.append(part)
                at += head * n * qkv.nb[0]
        else:
            parts = [self._clamped(g.linear(self.attn_q, x))]
            if self.shares is None:
                parts.append(self._clamped(g.linear(self.attn_k, x)))
                parts.append(self._clamped(g.linear(self.attn_v, x)) if self.attn_v.weight.there else parts[1])
        if self.qk_norm == "row":
            parts[0] = self.attn_q_norm(g, parts[0])
            parts[1:2] = [self.attn_k_norm(g, part) for part in parts[1:2]]
        q, *kv = (heads(part, head, n) for part, (head, n) in zip(parts, shapes, strict=False))
        k, v = kv or (None, None)
        return q, k, v

    def _clamped(self, x: Tensor) -> Tensor:
        return ops.clamp(x, -self.clamp, self.clamp) if self.clamp else x


def heads(x: Tensor, head: int, n: int) -> Tensor:
    """(head * n, n_tokens), rows perhaps apart, as (head, n, n_tokens)."""
    if x.is_contiguous:
        return ops.reshape(x, head, n, x.ne[1])
    return ops.view(x, (head, n, x.ne[1]), (head * x.nb[0], x.nb[1]))


def sharing(hp: Hparams, il: int, first: int, windows: Sequence[bool]) -> int | None:
    """The layer whose keys and values layer `il` reads, where those from `first` on have none of their own: the last before
    them that has a window if this one has (llama-model.cpp: create_memory, `reuse`). Raises ModelError."""
    if il < first:
        return None
    of = first - (2 if windows[il] else 1)
    if of < 0 or windows[of] != windows[il] or hp.n_head_kv(of) != hp.n_head_kv(il):
        what = f"a window: {windows[il]}, {hp.n_head_kv(il)} heads of keys"
        raise ModelError(f"layers from {first} on share keys: layer {il} ({what}) cannot read those of layer {of}")
    return of


class Temperature:
    """A factor a position: 1 + scale * log(1 + floor((position + offset) / floor_scale)), so that attention stays sharp in
    long contexts (llm_graph_input_attn_temp::set_input)."""

    def __init__(self, scale: float, floor_scale: int, offset: float = 0.0) -> None:
        self.scale, self.floor_scale, self.offset = scale, floor_scale, offset

    def of(self, g: GraphBuilder) -> Tensor:
        """F32 (1, 1, n_tokens), one input for all layers."""
        return g.shared_input("attn_scale", GGMLType.F32, 1, 1, g.n_tokens, fill=self._fill)

    def _fill(self, ub: Ubatch, _: Any) -> NDArray[Any]:
        far = np.floor((ub.pos.astype(np.float32) + np.float32(self.offset)) / np.float32(self.floor_scale))
        factor: NDArray[Any] = np.log(far + np.float32(1)) * np.float32(self.scale) + np.float32(1)
        return factor.astype(np.float32)
