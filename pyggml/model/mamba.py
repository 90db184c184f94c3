"""Mamba and Mamba 2: state-space layers, whose state decays by steps that depend on the token (llama.cpp:
models/mamba-base.cpp). Owns the order of their nodes; knows no architecture's name.
"""

from __future__ import annotations

from typing import Any

from pyggml import ops
from pyggml.memory import Need
from pyggml.memory.recurrent import StateLayer
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.layers import Remembers
from pyggml.model.linear import Linear
from pyggml.model.module import Weight
from pyggml.model.norms import PlainRMSNorm, RMSNorm
from pyggml.model.states import Bias, Convolution, StateKeys, by_sequence
from pyggml.tensor import Tensor


class Mamba(Remembers):
    """x (n_embd, n_tokens) -> the same: the first Mamba, where each channel has a step and a decay for each element of its
    state.

    normed  whether steps, B and C are normed, with weights; without weights where the file says so (ssm.dt_b_c_rms)
    """

    def __init__(self, hp: Hparams, il: int, *, normed: bool = False) -> None:
        keys = self.keys = StateKeys(hp)
        self.ssm_in = Linear(hp.n_embd, 2 * keys.d_inner)
        self.ssm_conv1d = Convolution(keys.d_conv, keys.d_inner, biased=True)
        self.ssm_x = Linear(keys.d_inner, keys.n_head + 2 * keys.d_state)
        self.ssm_dt = Linear(keys.n_head, keys.d_inner)
        self.ssm_dt.bias.required = True
        self.ssm_a = Weight(keys.d_state, keys.d_inner, bare=True)
        self.ssm_d = Weight(keys.d_inner, bare=True)
        self.ssm_out = Linear(keys.d_inner, hp.n_embd)
        norm: Any = None
        if normed or hp.boolean("ssm.dt_b_c_rms", False):
            norm = RMSNorm if normed else PlainRMSNorm
        self.ssm_dt_norm = norm and norm.of(hp, keys.n_head)
        self.ssm_b_norm = norm and norm.of(hp, keys.d_state)
        self.ssm_c_norm = norm and norm.of(hp, keys.d_state)

    def need(self) -> Need:
        keys = self.keys
        return Need(states=StateLayer(self.il, {"conv": self.ssm_conv1d.size, "ssm": keys.d_state * keys.d_inner}))

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        keys, each = self.keys, g.n_tokens // g.n_seqs
        xz = g.linear(self.ssm_in, x)
        z = ops.view(xz, (keys.d_inner, g.n_tokens), (xz.nb[1],), keys.d_inner * xz.nb[0])
        inner = ops.view(xz, (keys.d_inner, g.n_tokens), (xz.nb[1],))
        inner = ops.unary(self.ssm_conv1d(g, by_sequence(g, inner)), ops.UnaryOp.SILU)
        dt, b, c = self._steps(g, ops.reshape(inner, keys.d_inner, g.n_tokens))
        dt = ops.reshape(g.linear(self.ssm_dt, dt), keys.d_inner, each, g.n_seqs)
        heads = ops.reshape(inner, 1, keys.d_inner, each, g.n_seqs)
        y = scan(g, self.il, heads, dt, self.ssm_a.value, b, c)
        y = ops.reshape(y, keys.d_inner, g.n_tokens)
        y = ops.add(y, ops.mul(ops.reshape(inner, *y.ne), self.ssm_d.value))
        return g.linear(self.ssm_out, ops.glu(ops.cont(z), y, ops.GluOp.SWIGLU, name=f"ssm_y-{self.il}"))

    def _steps(self, g: GraphBuilder, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Steps (time_step_rank, n_tokens), B and C (d_state, 1, tokens of a sequence, sequences) of x (d_inner, n_tokens)."""
        keys = self.keys
        all_three, at, parts = g.linear(self.ssm_x, x), 0, []
        for n in (keys.n_head, keys.d_state, keys.d_state):
            parts.append(ops.view(all_three, (n, g.n_tokens), (all_three.nb[1],), at))
            at += n * all_three.nb[0]
        if self.ssm_dt_norm is not None:
            norms = self.ssm_dt_norm, self.ssm_b_norm, self.ssm_c_norm
            parts = [norm(g, part) for norm, part in zip(norms, parts, strict=True)]
        else:
            parts[0] = ops.cont(parts[0])
        dt, b, c = parts
        return dt, one_group(g, b), one_group(g, c)


class Mamba2(Remembers):
    """x (n_embd, n_tokens) -> the same: heads, each with one step and one decay, and B and C for groups of heads.

    conv_biased  whether the file must have the convolution's bias
    normed       whether it must have the weights of the norm of the result, which is done where they are there
    norm         the class of that norm
    """

    def __init__(
        self, hp: Hparams, il: int, *, conv_biased: bool = False, normed: bool = True, norm: Any = RMSNorm
    ) -> None:
        keys = self.keys = StateKeys.headed(hp)
        self.n_conv = keys.d_inner + 2 * keys.n_group * keys.d_state
        self.ssm_in = Linear(hp.n_embd, keys.d_inner + self.n_conv + keys.n_head)
        self.ssm_conv1d = Convolution(keys.d_conv, self.n_conv, biased=conv_biased)
        self.ssm_dt = Bias(keys.n_head)
        self.ssm_a = Weight(1, keys.n_head, bare=True)
        self.ssm_d = Weight(1, keys.n_head, bare=True)
        self.ssm_norm = norm.of(hp, keys.d_inner // keys.n_group, heads=keys.n_group, required=normed)
        self.ssm_out = Linear(keys.d_inner, hp.n_embd)

    def need(self) -> Need:
        keys = self.keys
        return Need(states=StateLayer(self.il, {"conv": self.ssm_conv1d.size, "ssm": keys.d_state * keys.d_inner}))

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        keys, each = self.keys, g.n_tokens // g.n_seqs
        all_parts = g.linear(self.ssm_in, x)
        size, row = all_parts.nb[0], all_parts.nb[1]
        z = ops.view(all_parts, (keys.d_inner, g.n_tokens), (row,))
        mixed = ops.view(all_parts, (self.n_conv, g.n_tokens), (row,), keys.d_inner * size)
        dt = ops.view(all_parts, (keys.n_head, g.n_tokens), (row,), (keys.d_inner + self.n_conv) * size)
        mixed = ops.unary(self.ssm_conv1d(g, by_sequence(g, mixed)), ops.UnaryOp.SILU)
        inner, b, c = self._parts(mixed)
        dt = ops.reshape(ops.add(dt, self.ssm_dt.bias.value), keys.n_head, each, g.n_seqs)
        y = scan(g, self.il, inner, dt, self.ssm_a.value, b, c)
        y = ops.add(y, ops.mul(inner, self.ssm_d.value))
        y = ops.glu(ops.cont(z), ops.reshape(y, keys.d_inner, g.n_tokens), ops.GluOp.SWIGLU, name=f"ssm_y-{self.il}")
        grouped = ops.reshape(y, keys.d_inner // keys.n_group, keys.n_group, g.n_tokens)
        return g.linear(self.ssm_out, ops.reshape(self.ssm_norm(g, grouped), keys.d_inner, g.n_tokens))

    def _parts(self, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(n_conv, tokens of a sequence, sequences) -> what the state takes in (head, n_head, tokens, sequences), B and C
        (d_state, n_group, tokens, sequences)."""
        keys, at, found = self.keys, 0, []
        for n, heads in ((keys.head, keys.n_head), (keys.d_state, keys.n_group), (keys.d_state, keys.n_group)):
            ne = (n, heads, *mixed.ne[1:3])
            found.append(ops.view(mixed, ne, (n * mixed.nb[0], *mixed.nb[1:3]), at))
            at += n * heads * mixed.nb[0]
        return found[0], found[1], found[2]


def one_group(g: GraphBuilder, x: Tensor) -> Tensor:
    """(n, n_tokens), rows perhaps apart, as (n, 1, tokens of a sequence, sequences)."""
    each = g.n_tokens // g.n_seqs
    return ops.view(x, (x.ne[0], 1, each, g.n_seqs), (x.ne[0] * x.nb[0], x.nb[1], x.nb[1] * each))


def scan(
    g: GraphBuilder, il: int, x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: str = "ssm"
) -> Tensor:
    """The op, its state read in place and kept behind it. Operands as ops.ssm_scan has them -> y, dense as x is."""
    rows, slots = g.states(il, state)
    head, n_head, each, n_seqs = x.ne
    before = ops.reshape(rows, b.ne[0], head, n_head, rows.ne[1])
    both = ops.ssm_scan(before, x, dt, a, b, c, slots, name=f"ssm_scan-{il}")
    size, step = rows.ne[0], both.nb[0]
    g.set_state(il, state, ops.view(both, (size, n_seqs), (size * step,), x.nelements * step))
    strides = (head * step, head * n_head * step, head * n_head * each * step)
    return ops.view(both, x.ne, strides)
