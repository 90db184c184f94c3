"""RWKV 6 and 7: layers whose state is a matrix a head, and which mix each token with the one before it (llama.cpp:
models/rwkv6-base.cpp, rwkv7-base.cpp). Owns the order of their nodes; knows no architecture's name.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

from pyggml import ops
from pyggml.errors import ModelError
from pyggml.memory import Need
from pyggml.memory.recurrent import StateLayer
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.layers import Remembers
from pyggml.model.linear import Linear
from pyggml.model.module import Module, Weight
from pyggml.model.norms import LayerNorm
from pyggml.tensor import Tensor

HEAD_NORM_EPS = 64e-5
"""Of the norm of what each head finds."""


class Numbers(Module):
    """A tensor that is no matrix, under the name of the attribute that holds it; with a bias if `biased`."""

    def __init__(self, *ne: int, required: bool = True, biased: bool = False) -> None:
        self.weight = Weight(*ne, required=required)
        self.bias = Weight(*ne, required=required) if biased else None

    @property
    def value(self) -> Tensor:
        return self.weight.value

    def part(self, i: int) -> Tensor:
        """Row number i, counted over all but the first dimension."""
        n = self.value.ne[0]
        return ops.view(self.value, (n,), (), i * n * self.value.nb[0])


def shifted(g: GraphBuilder, il: int, state: str, x: Tensor) -> Tensor:
    """x (n, n_tokens): for each token what the token before it has in its sequence, which for the first is what was kept.
    Its last is kept for the tokens that follow."""
    n, each = x.ne[0], g.n_tokens // g.n_seqs
    before = ops.reshape(g.state(il, state), n, 1, g.n_seqs)
    strides = x.nb[1], each * x.nb[1]
    if each > 1:
        before = ops.concat(before, ops.view(x, (n, each - 1, g.n_seqs), strides), 1)
    g.set_state(il, state, ops.view(x, (n, g.n_seqs), (strides[1],), (each - 1) * x.nb[1]))
    return ops.reshape(before, n, g.n_tokens)


class TimeMix(Remembers):
    """x (n_embd, n_tokens) -> the same. `other`: what both versions have."""

    def __init__(self, hp: Hparams, il: int) -> None:
        n = self.n = hp.n_embd
        self.head = hp.u32("wkv.head_size")
        if n % self.head:
            raise ModelError(f"key {hp.architecture}.wkv.head_size is {self.head}, must divide embedding_length ({n})")
        self.n_head = n // self.head
        self.time_mix_receptance = Linear(n, n)
        self.time_mix_output = Linear(n, n)

    def need(self) -> Need:
        return Need(states=StateLayer(self.il, {"time_shift": self.n, "wkv": self.n * self.head}))

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        difference = ops.sub(shifted(g, self.il, "time_shift", x), x)
        return g.linear(self.time_mix_output, self.mixed(g, x, difference))

    @abstractmethod
    def mixed(self, g: GraphBuilder, x: Tensor, difference: Tensor) -> Tensor:
        """What goes into the last matrix; `difference`: of the token before each token and it, (n_embd, n_tokens)."""

    def heads(self, x: Tensor) -> Tensor:
        """(n_embd, n_tokens) -> (head, n_head, n_tokens)"""
        return ops.reshape(x, self.head, self.n_head, x.ne[1])

    def kept(self, g: GraphBuilder, both: Tensor) -> Tensor:
        """The op's outputs (n_embd, n_tokens); the states behind them are kept."""
        size, row = self.n * self.head, both.nb[1]
        states = ops.view(both, (size, g.n_seqs), (size * both.nb[0],), g.n_tokens * row)
        g.set_state(self.il, "wkv", states)
        return ops.view(both, (self.n, g.n_tokens), (row,))

    def normed(self, y: Tensor, norm: Numbers) -> Tensor:
        """Each head by itself, then weights and biases of all."""
        assert norm.bias is not None
        if norm.bias.tensor is None:
            raise ModelError(f"tensor {norm.bias.name} is missing")
        y = ops.reshape(ops.norm(self.heads(y), HEAD_NORM_EPS), self.n, y.ne[1])
        return ops.add(ops.mul(y, norm.value), norm.bias.tensor)


class TimeMix6(TimeMix):
    """Version 6. What five matrices get is mixed by shares that depend on the token.

    plain  the variant without a bonus for the token itself and without a norm: gated linear attention, for heads that may
           share keys and values (rwkv6qwen2)
    """

    NAMES = ("w", "k", "v", "r", "g")

    def __init__(self, hp: Hparams, il: int, *, plain: bool = False) -> None:
        super().__init__(hp, il)
        n, low, low_decay = self.n, hp.u32("time_mix_extra_dim"), hp.u32("time_decay_extra_dim")
        shared = hp.has_attention(il) and hp.n_head_kv(il) != self.n_head
        self.n_head_kv = hp.n_head_kv(il) if plain and shared else self.n_head
        if self.n_head % self.n_head_kv:
            raise ModelError(
                f"key {hp.architecture}.attention.head_count_kv is {self.n_head_kv}, must divide the {self.n_head} heads"
            )
        self.plain, self.low = plain, low
        self.time_mix_w1 = Linear(n, 5 * low, plain=True)
        self.time_mix_w2 = Numbers(low, n, 5)
        self.time_mix_lerp_x = Numbers(n)
        self.time_mix_lerp_fused = Numbers(n, 1, 1, 5, required=plain)
        if not plain:
            self.time_mix_first = Numbers(self.head, self.n_head)
            for name in self.NAMES:
                setattr(self, f"time_mix_lerp_{name}", Numbers(n))
            self.time_mix_ln = Numbers(n, biased=True)
        self.time_mix_decay = Numbers(n)
        self.time_mix_decay_w1 = Linear(n, low_decay, plain=True)
        self.time_mix_decay_w2 = Linear(low_decay, n, plain=True)
        self.time_mix_key = Linear(n, self.n_head_kv * self.head)
        self.time_mix_value = Linear(n, self.n_head_kv * self.head)
        self.time_mix_gate = Linear(n, n)

    def wanted(self, tensors: Mapping[str, Any]) -> Iterator[Weight]:
        """One tensor for all five shares, or five."""
        fused = self.time_mix_lerp_fused.weight.name in tensors
        for name in self.NAMES if not self.plain else ():
            getattr(self, f"time_mix_lerp_{name}").weight.required = not fused
        yield from super().wanted(tensors)

    def mixed(self, g: GraphBuilder, x: Tensor, difference: Tensor) -> Tensor:
        shares = ops.add(ops.mul(difference, self.time_mix_lerp_x.value), x)
        shares = ops.unary(g.linear(self.time_mix_w1, shares), ops.UnaryOp.TANH)
        shares = ops.reshape(shares, self.low, 5, g.n_tokens)
        shares = g.linear_each(self.time_mix_w2.value, ops.cont(ops.permute(shares, 0, 2, 1, 3)))  # (n, n_tokens, 5)
        w, k, v, r, gate = (self._share(x, difference, shares, i) for i in range(5))
        k, v = self._repeated(g.linear(self.time_mix_key, k)), self._repeated(g.linear(self.time_mix_value, v))
        r = self.heads(g.linear(self.time_mix_receptance, r))
        kind = ops.UnaryOp.SIGMOID if self.plain else ops.UnaryOp.SILU
        gate = ops.unary(g.linear(self.time_mix_gate, gate), kind)
        w = g.linear(self.time_mix_decay_w2, ops.unary(g.linear(self.time_mix_decay_w1, w), ops.UnaryOp.TANH))
        w = ops.unary(ops.add(w, self.time_mix_decay.value), ops.UnaryOp.EXP)
        w = self.heads(ops.unary(ops.unary(w, ops.UnaryOp.NEG), ops.UnaryOp.EXP))
        state = g.state(self.il, "wkv")
        if self.plain:
            k = ops.sub(k, ops.mul(k, w))
            y = self.kept(g, ops.gated_linear_attn(k, v, r, w, state, self.head**-0.5, name=f"gla-{self.il}"))
        else:
            y = self.kept(g, ops.rwkv_wkv6(k, v, r, self.time_mix_first.value, w, state, name=f"wkv-{self.il}"))
            y = self.normed(y, self.time_mix_ln)
        return ops.mul(y, gate)

    def _share(self, x: Tensor, difference: Tensor, shares: Tensor, i: int) -> Tensor:
        share = ops.view(shares, (self.n, shares.ne[1]), (shares.nb[1],), i * shares.nb[2])
        if self.time_mix_lerp_fused.weight.there:
            lerp = self.time_mix_lerp_fused.part(i)
        else:
            lerp = getattr(self, f"time_mix_lerp_{self.NAMES[i]}").value
        return ops.add(ops.mul(ops.add(share, lerp), difference), x)

    def _repeated(self, x: Tensor) -> Tensor:
        """Keys or values for each head: of neighbours the same, where they share them."""
        n_tokens, each = x.ne[1], self.n_head // self.n_head_kv
        if each > 1:
            x = ops.repeat(
                ops.reshape(x, self.head, 1, self.n_head_kv, n_tokens), self.head, each, self.n_head_kv, n_tokens
            )
        return ops.reshape(x, self.head, self.n_head, n_tokens)


class TimeMix7(TimeMix):
    """Version 7. Values of layers behind the first are mixed with those of the first.

    plain  the variant that may lack norm and gate (arwkv7)
    """

    def __init__(self, hp: Hparams, il: int, *, plain: bool = False) -> None:
        super().__init__(hp, il)
        n, first = self.n, il == 0
        ranks = {name: hp.u32(f"attention.{name}_lora_rank") for name in ("decay", "iclr", "value_residual_mix")}
        gate = hp.u32("attention.gate_lora_rank", 0, least=0)
        self.time_mix_lerp_fused = Numbers(n, 1, 1, 6 if gate or not plain else 5)
        self.time_mix_key, self.time_mix_value = Linear(n, n), Linear(n, n)
        self._low_rank("w", ranks["decay"])
        self._low_rank("a", ranks["iclr"])
        if not first:
            self._low_rank("v", ranks["value_residual_mix"])
        self.gated = bool(gate) or not plain
        if self.gated:
            self._low_rank("g", gate, shifts=False)
        self.time_mix_k_k, self.time_mix_k_a, self.time_mix_r_k = Numbers(n), Numbers(n), Numbers(n)
        self.time_mix_ln = Numbers(n, required=not plain, biased=True)

    def _low_rank(self, name: str, rank: int, shifts: bool = True) -> None:
        """Declare time_mix_<name>1 and 2, and the shift 0."""
        if shifts:
            setattr(self, f"time_mix_{name}0", Numbers(self.n))
        setattr(self, f"time_mix_{name}1", Linear(self.n, rank, plain=True))
        setattr(self, f"time_mix_{name}2", Linear(rank, self.n, plain=True))

    def passed_over(self, tensors: Any) -> Iterator[str]:
        """The first layer's values are its own: what mixes them is in the file, and not read."""
        if self.il == 0:
            yield from (f"blk.0.time_mix_v{i}.weight" for i in range(3))

    def _through(self, g: GraphBuilder, name: str, x: Tensor, between: ops.UnaryOp | None = None) -> Tensor:
        """x through the matrices of low rank, and the shift added."""
        x = g.linear(getattr(self, f"time_mix_{name}1"), x)
        if between is not None:
            x = ops.unary(x, between)
        x = g.linear(getattr(self, f"time_mix_{name}2"), x)
        shift = getattr(self, f"time_mix_{name}0", None)
        return x if shift is None else ops.add(x, shift.value)

    def mixed(self, g: GraphBuilder, x: Tensor, difference: Tensor) -> Tensor:
        n = 6 if self.gated else 5
        parts = [ops.add(ops.mul(difference, self.time_mix_lerp_fused.part(i)), x) for i in range(n)]
        xr, xw, xk, xv, xa = parts[:5]
        r = g.linear(self.time_mix_receptance, xr)
        w = ops.unary(self._through(g, "w", xw, ops.UnaryOp.TANH), ops.UnaryOp.SIGMOID)
        w = ops.unary(ops.scale(w, -0.606531), ops.UnaryOp.EXP)  # e^-0.5
        k, v = g.linear(self.time_mix_key, xk), g.linear(self.time_mix_value, xv)
        if self.il == 0:
            g.handed_on["first_values"] = v
        else:
            share = ops.unary(self._through(g, "v", xv), ops.UnaryOp.SIGMOID)
            v = ops.add(v, ops.mul(ops.sub(g.handed_on["first_values"], v), share))
        a = ops.unary(self._through(g, "a", xa), ops.UnaryOp.SIGMOID)
        kk = ops.l2_norm(self.heads(ops.mul(k, self.time_mix_k_k.value)), 1e-12)
        ka = ops.mul(k, self.time_mix_k_a.value)
        k = ops.add(k, ops.sub(ops.mul(a, ka), ka))
        r, w, k, v, a = (self.heads(t) for t in (r, w, k, v, a))
        state = g.state(self.il, "wkv")
        both = ops.rwkv_wkv7(r, w, k, v, ops.unary(kk, ops.UnaryOp.NEG), ops.mul(kk, a), state, name=f"wkv-{self.il}")
        y = self.kept(g, both)
        if self.time_mix_ln.weight.there:
            y = self.normed(y, self.time_mix_ln)
        bonus = ops.mul(ops.mul(k, r), ops.reshape(self.time_mix_r_k.value, self.head, self.n_head))
        y = ops.add(y, ops.reshape(ops.mul(v, ops.sum_rows(bonus)), self.n, g.n_tokens))
        return ops.mul(y, self._through(g, "g", parts[5], ops.UnaryOp.SIGMOID)) if self.gated else y


class ChannelMix(Remembers):
    """A feed-forward network of a token and the one before it; `received` (version 6): with a gate."""

    def __init__(self, hp: Hparams, il: int, *, received: bool) -> None:
        n, n_ff = hp.n_embd, hp.n_ff(0)
        self.n, self.received = n, received
        self.channel_mix_lerp_k = Numbers(n)
        self.channel_mix_key, self.channel_mix_value = Linear(n, n_ff), Linear(n_ff, n)
        if received:
            self.channel_mix_lerp_r = Numbers(n)
            self.channel_mix_receptance = Linear(n, n)

    def need(self) -> Need:
        return Need(states=StateLayer(self.il, {"channel_shift": self.n}))

    def __call__(self, g: GraphBuilder, x: Tensor, before: Tensor) -> Tensor:
        """`before`: what the tokens before these have."""
        difference = ops.sub(before, x)
        k = g.linear(self.channel_mix_key, ops.add(ops.mul(difference, self.channel_mix_lerp_k.value), x))
        y = g.linear(self.channel_mix_value, ops.sqr(ops.unary(k, ops.UnaryOp.RELU)))
        if not self.received:
            return y
        r = g.linear(self.channel_mix_receptance, ops.add(ops.mul(difference, self.channel_mix_lerp_r.value), x))
        return ops.mul(ops.unary(r, ops.UnaryOp.SIGMOID), y)


class RWKVBlock(Module):
    """x += time_mix(attn_norm(x)); x += channel_mix(attn_norm_2(x)). An architecture sets `time_mix` and `channel_mix`.

    halved  the result is halved (RWKV 6 in F16 stays in range: rescale_every_n_layers)
    """

    time_mix: Any
    channel_mix: Any
    halved = False

    def __init__(self, hp: Hparams, il: int) -> None:
        self.attn_norm, self.attn_norm_2 = LayerNorm.of(hp), LayerNorm.of(hp)

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        x = ops.add(self.time_mix(g, self.attn_norm(g, x)), x, name=f"ffn_inp-{self.il}")
        normed = self.attn_norm_2(g, x)
        before = shifted(g, self.il, "channel_shift", normed)
        x, normed, before = g.select_outputs(self.il, x, normed, before)
        cur = ops.add(self.channel_mix(g, normed, before), x, name=f"l_out-{self.il}")
        return ops.scale(cur, 0.5) if self.halved else cur
