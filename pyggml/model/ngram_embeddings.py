"""Embeddings that are looked up by a token and the few before it, by a hash, and added to a layer's streams (llama.cpp:
models/qwen4exp.cpp, build_inp_ple, build_ple).

Owns the hash, the gate of what is found, and the convolution over it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyggml import ops
from pyggml.dtypes import GGMLType
from pyggml.errors import ModelError
from pyggml.memory import Need
from pyggml.memory.recurrent import StateLayer
from pyggml.memory.tokens import Tokens
from pyggml.memory.ubatch import Ubatch
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.hyper_connections import StreamWeights
from pyggml.model.layers import Remembers
from pyggml.model.linear import Linear
from pyggml.model.module import Module, Weight
from pyggml.tensor import Tensor

FOUND = "n-gram embeddings"
MAX_NGRAM, MAX_HEADS = 8, 64


class NgramKeys:
    """What the file says (ple.*).

    n          tokens of the longest n-gram; each of 2 to n has n_each heads
    offsets, sizes   of each head: rows of the table from one on, so many
    factors    what the tokens are multiplied by, the newest first
    end        the token that nothing is looked up across
    """

    def __init__(self, hp: Hparams) -> None:
        self.layers = (
            [int(il) for il in hp.items(hp.find("ple.layers")[1])] if hp.find("ple.layers")[1] is not None else []
        )
        if not self.layers:
            return
        self.n, self.n_each = hp.u32("ple.ngram_size", least=2), hp.u32("ple.heads_per_ngram")
        self.n_conv, self.end = hp.u32("ple.conv_kernel"), hp.u32("ple.eos_token_id", least=0)
        self.size = hp.u32("embedding_length_per_layer_input")
        self.n_heads = (self.n - 1) * self.n_each
        if self.n > MAX_NGRAM or self.n_heads > MAX_HEADS or len(self.layers) > 1:
            raise ModelError(
                f"keys {hp.architecture}.ple.*: {self.n} tokens, {self.n_heads} heads, layers {self.layers}: at most "
                f"{MAX_NGRAM}, {MAX_HEADS}, and one layer are possible"
            )
        self.factors = self._numbers(hp, "ple.layer_multipliers", self.n)
        self.offsets = self._numbers(hp, "ple.head_offsets", self.n_heads)
        self.sizes = self._numbers(hp, "ple.head_vocab_sizes", self.n_heads)
        self.n_rows = int((self.offsets + self.sizes).max())
        if not self.sizes.all() or self.n_rows > (1 << 31) - 1:
            raise ModelError(
                f"keys {hp.architecture}.ple.head_*: rows from 0 to {self.n_rows - 1}, some heads have none"
            )

    @staticmethod
    def _numbers(hp: Hparams, key: str, n: int) -> NDArray[np.uint64]:
        full, value = hp.find(key)
        items = [] if value is None else hp.items(value)
        if len(items) < n or any(not isinstance(item, int) or item < 0 for item in items):
            raise ModelError(f"key {full} is {value!r:.60}, must be {n} integers from 0")
        return np.array(items[:n], np.uint64)

    def rows(self, tokens: NDArray[np.int32], before: NDArray[np.int32]) -> NDArray[np.int32]:
        """tokens (n_tokens), before (n - 1, n_tokens), -1 where there is none -> rows of the table (n_tokens, n_heads)."""
        line = np.concatenate([tokens[None, :], before]).astype(np.int64)
        cut = np.zeros(len(tokens), np.bool_)
        for back in range(1, self.n):
            cut |= (line[back] < 0) | (line[back] == self.end)
            line[back, cut] = self.end
        terms = line.astype(np.uint64) * self.factors[:, None]
        found = np.empty((len(tokens), self.n_heads), np.int32)
        mixed = terms[0].copy()
        for back in range(1, self.n):
            mixed ^= terms[back]
            for head in range((back - 1) * self.n_each, back * self.n_each):
                found[:, head] = mixed % self.sizes[head] + self.offsets[head]
        return found


class NgramTable(Module):
    """A row for each hash; converters make it longer than its heads need."""

    at_input = True

    def __init__(self, keys: NgramKeys, n_rows: int) -> None:
        if n_rows < keys.n_rows:
            raise ModelError(
                f"tensor per_layer_token_embd.weight has {n_rows} rows, the heads reach to {keys.n_rows - 1}"
            )
        self.keys, self.weight = keys, Weight(keys.size, n_rows)

    def __call__(self, g: GraphBuilder) -> Tensor:
        """(size * n_heads, n_tokens), the heads one behind the other."""
        keys = self.keys
        (part,) = (part for part in g.memory.parts if isinstance(part, Tokens))

        def fill(ub: Ubatch, _: Any) -> NDArray[np.int32]:
            return keys.rows(ub.tokens, part.before(ub, keys.n - 1)).reshape(-1)

        rows = g.shared_input("ngram_rows", GGMLType.I32, keys.n_heads * g.n_tokens, fill=fill)
        return ops.reshape(ops.get_rows(self.weight.value, rows), keys.size * keys.n_heads, g.n_tokens)


class NgramStreams(Remembers):
    """x (n_embd, streams, n_tokens) -> the same, with what was found added: values, each stream's with a gate, and a convolution
    over them that goes `n` tokens back at a time."""

    def __init__(self, hp: Hparams, keys: NgramKeys) -> None:
        self.keys, self.eps, self.n = keys, hp.rms_eps, hp.u32("hyper_connection.count")
        self.wide = self.n * hp.n_embd
        self.ple_key, self.ple_value = (
            Linear(keys.size * keys.n_heads, self.wide),
            Linear(keys.size * keys.n_heads, hp.n_embd),
        )
        self.ple_norm_key, self.ple_norm_query, self.ple_norm_conv = (
            StreamWeights(hp.n_embd, self.n) for _ in range(3)
        )
        self.ple_conv1d = Taps(keys.n_conv, self.wide)
        self.n_kept = (keys.n_conv - 1) * keys.n

    def need(self) -> Need:
        states = StateLayer(self.il, {"ngrams": self.n_kept * self.wide}) if self.n_kept else None
        return Need(states=states, tokens=True)

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        found, ne = g.handed_on[FOUND], x.ne[:3]
        key = self.ple_norm_key(ops.reshape(g.linear(self.ple_key, found), *ne), self.eps)
        score = ops.sum_rows(ops.mul(key, self.ple_norm_query(x, self.eps)))
        score = ops.scale(score, 1.0 / math.sqrt(ne[0]))
        size = ops.sqrt(ops.clamp(ops.unary(score, ops.UnaryOp.ABS), 1e-6, float("inf")))
        gate = ops.unary(ops.mul(ops.unary(score, ops.UnaryOp.SGN), size), ops.UnaryOp.SIGMOID)
        value = ops.repeat(ops.reshape(g.linear(self.ple_value, found), ne[0], 1, ne[2]), *ne)
        gated = ops.mul(value, gate, name=f"ple_gated-{self.il}")
        near = ops.reshape(self._convolved(g, self.ple_norm_conv(gated, self.eps)), *ne)
        return ops.add(x, ops.add(gated, near), name=f"ple-{self.il}")

    def _convolved(self, g: GraphBuilder, x: Tensor) -> Tensor:
        """(n_embd, streams, n_tokens) -> (wide, tokens of a sequence, sequences)."""
        each, n_seqs = g.n_tokens // g.n_seqs, g.n_seqs
        line = ops.reshape(x, self.wide, each, n_seqs)
        if self.n_kept:
            line = ops.concat(ops.reshape(g.state(self.il, "ngrams"), self.wide, self.n_kept, n_seqs), line, 1)
            last = ops.view(line, (self.wide, self.n_kept, n_seqs), line.nb[1:3], each * line.nb[1])
            g.set_state(self.il, "ngrams", ops.cont(last, self.wide * self.n_kept, n_seqs))
        total: Tensor | None = None
        for k, weights in enumerate(self.ple_conv1d.taps()):
            part = ops.view(line, (self.wide, each, n_seqs), line.nb[1:3], k * self.keys.n * line.nb[1])
            term = ops.mul(ops.cont(part), weights)
            total = term if total is None else ops.add(total, term)
        assert total is not None
        return ops.unary(total, ops.UnaryOp.SILU)


class Taps(Module):
    """Weights of a convolution, the oldest token's first: (n, channels)."""

    def __init__(self, n: int, channels: int) -> None:
        self.weight = Weight(n, channels)

    def taps(self) -> list[Tensor]:
        """F32 (channels) each."""
        weight = self.weight.value
        across = ops.cpy(ops.transpose(weight), Tensor(GGMLType.F32, (weight.ne[1], weight.ne[0])))
        return [ops.view(across, (across.ne[0],), (), k * across.nb[1]) for k in range(across.ne[1])]


def table_of(hp: Hparams, tensors: Mapping[str, Any]) -> NgramTable | None:
    """The table that all layers read; None where the file has none."""
    keys = NgramKeys(hp)
    if not keys.layers:
        return None
    found = tensors.get("per_layer_token_embd.weight")
    return NgramTable(keys, keys.n_rows if found is None else int(found.ne[1]))
