"""For each special part of an architecture with states a mutant, that the comparison with llama.cpp in pieces must catch."""

from collections.abc import Callable
from typing import Any

import pytest
from arch_files import LIMIT, TOKENS, decode_in, pieces_of
from arch_variants import all_files
from peer_archs import ArchPeer, Script, nmse

from pyggml import ops
from pyggml.model import delta_net, kimi_delta
from pyggml.model.arch import kimi_k3
from pyggml.model.arch.bailingmoe3 import BoundedDelta
from pyggml.model.arch.minimax_01 import LinearAttention
from pyggml.model.arch.nemotron_h import LatentExperts
from pyggml.model.arch.qwen3next import GroupedDeltaNet
from pyggml.model.delta_net import DeltaNet
from pyggml.model.experts import Experts
from pyggml.model.gated_attention import GatedAttention
from pyggml.model.graph import GraphBuilder
from pyggml.model.kimi_delta import KimiDelta
from pyggml.model.latent_attention import LatentAttention
from pyggml.model.mamba import Mamba, Mamba2
from pyggml.model.model import Model
from pyggml.model.rwkv import RWKVBlock, TimeMix6, TimeMix7
from pyggml.model.short_convolution import ShortConvolution
from pyggml.model.states import Convolution
from pyggml.runtime.context import Context

Mutate = Callable[[Any, pytest.MonkeyPatch], None]
"""Changes the modules of a model that is loaded, or what they are made with, before its context is made."""


def on(kind: type[Any], **values: Any) -> Mutate:
    """Other values for attributes of the modules of this class."""

    def mutate(modules: Any, patch: pytest.MonkeyPatch) -> None:
        found = [module for module in modules.modules() if isinstance(module, kind)]
        assert found, kind
        for module in found:
            for name, value in values.items():
                assert hasattr(module, name), name
                setattr(module, name, value)

    return mutate


def method(owner: Any, name: str, wrong: Callable[..., Any]) -> Mutate:
    """`wrong` gets the method, then what the method gets."""

    def mutate(modules: Any, patch: pytest.MonkeyPatch) -> None:
        right = getattr(owner, name)
        patch.setattr(owner, name, lambda *given, **more: wrong(right, *given, **more))

    return mutate


class LateConvolution(Convolution):
    """Keeps the columns before the last ones."""

    def __call__(self, g: GraphBuilder, x: Any) -> Any:
        kept = g.set_state

        def late(il: int, name: str, value: Any) -> None:
            columns = ops.reshape(value, self.d_conv - 1, self.n, g.n_seqs)
            kept(il, name, ops.reshape(ops.roll(columns, 1), self.size, g.n_seqs))

        g.set_state = late  # type: ignore[method-assign]
        try:
            return super().__call__(g, x)
        finally:
            g.set_state = kept  # type: ignore[method-assign]


def late(modules: Any, patch: pytest.MonkeyPatch) -> None:
    for module in modules.modules():
        if isinstance(module, Convolution):
            module.__class__ = LateConvolution


def forgotten(state: str) -> Mutate:
    """A state that is not kept."""

    def wrong(right: Any, self: GraphBuilder, il: int, name: str, x: Any) -> None:
        if name != state:
            right(self, il, name, x)

    return method(GraphBuilder, "set_state", wrong)


def decay_grows(right: Any, g: Any, il: int, q: Any, k: Any, v: Any, decay: Any, beta: Any) -> Any:
    return right(g, il, q, k, v, ops.scale(decay, -1.0), beta)


def full_strength(right: Any, g: Any, il: int, q: Any, k: Any, v: Any, decay: Any, beta: Any) -> Any:
    return right(g, il, q, k, v, decay, ops.fill(beta, 1.0))


def same(right: Any, first: Any, *rest: Any) -> Any:
    return first


def neighbours(right: Any, self: Any, x: Any) -> Any:
    return GroupedDeltaNet.widened(self, x)


def no_bias(modules: Any, patch: pytest.MonkeyPatch) -> None:
    for module in modules.modules():
        if isinstance(module, Convolution):
            module.bias = None


def swapped_thirds(right: Any, self: Any, g: Any, x: Any) -> Any:
    """b * conv(c * x') in place of c * conv(b * x')."""
    view, n = ops.view, self.n

    def other(t: Any, ne: Any, strides: Any = (), offset: int = 0, name: str = "") -> Any:
        third = n * t.nb[0]
        return view(t, ne, strides, {0: third, third: 0}.get(offset, offset) if t.ne[0] == 3 * n else offset, name)

    ops.view = other
    try:
        return right(self, g, x)
    finally:
        ops.view = view


def ungated(right: Any, self: Any, g: Any, x: Any) -> Any:
    unary = ops.unary
    ops.unary = lambda t, kind, name="": ops.fill(t, 1.0) if kind == ops.UnaryOp.SIGMOID else unary(t, kind, name)
    try:
        return right(self, g, x)
    finally:
        ops.unary = unary


def no_mixture(right: Any, self: Any, g: Any, x: Any) -> Any:
    return x


def first_values_lost(right: Any, self: Any, g: Any, x: Any, difference: Any) -> Any:
    y = right(self, g, x, difference)
    if self.il == 0:
        g.handed_on["first_values"] = ops.fill(g.handed_on["first_values"], 0.0)
    return y


MUTANTS: list[tuple[str, str, Mutate]] = [
    ("qwen35-heads", "a convolution's state is late", late),
    ("qwen35-heads", "a convolution's state is not kept", forgotten("conv")),
    ("qwen35-heads", "a state is not kept", forgotten("delta")),
    ("qwen35-heads", "a state that grows", method(delta_net, "delta_rule", decay_grows)),
    ("qwen35-heads", "the whole difference", method(delta_net, "delta_rule", full_strength)),
    ("qwen35-heads", "keys as long as they are", method(delta_net, "l2_norm", same)),
    ("qwen35-heads", "a key for neighbouring heads", method(DeltaNet, "widened", neighbours)),
    ("qwen35-dense", "no gate of attention", method(GatedAttention, "__call__", ungated)),
    ("qwen3next-heads", "keys come again and again", method(GroupedDeltaNet, "widened", lambda right, self, x: x)),
    ("mamba-dense", "a convolution's state is late", late),
    ("mamba-dense", "a convolution without its bias", no_bias),
    ("mamba-normed", "steps, B and C as they are", on(Mamba, ssm_dt_norm=None)),
    ("mamba2-heads", "a state is not kept", forgotten("ssm")),
    ("mamba2-heads", "no norm of the result", on(Mamba2, ssm_norm=lambda g, x: x)),
    ("lfm2-dense", "a convolution's state is late", late),
    ("lfm2-dense", "gates swapped", method(ShortConvolution, "__call__", swapped_thirds)),
    ("jamba-experts", "shares by their sum", on(Experts, renormalise=True)),
    ("nemotron_h_moe-experts", "experts of all dimensions", on(LatentExperts, experts=lambda g, x, logits: x)),
    ("nemotron_h_moe-experts", "no bias of probabilities", on(Experts, exp_probs_b=None)),
    ("minimax-01-linear", "the same decay in all layers", on(LinearAttention, slope_scale=1.0)),
    ("minimax-01-moe", "a state is not kept", forgotten("linear")),
    ("kimi-linear-heads", "a convolution's state is late", late),
    ("kimi-linear-heads", "a state that grows", method(kimi_delta, "delta_rule", decay_grows)),
    ("kimi-linear-heads", "no gate", method(KimiDelta, "__call__", ungated)),
    ("rwkv6-five", "the token before is forgotten", forgotten("time_shift")),
    ("rwkv6-five", "the network's token before is forgotten", forgotten("channel_shift")),
    ("rwkv6-five", "never halved", on(RWKVBlock, halved=False)),
    ("rwkv6-five", "shares in another order", on(TimeMix6, NAMES=("k", "w", "v", "r", "g"))),
    ("rwkv6qwen2-shared", "a state is not kept", forgotten("wkv")),
    ("rwkv7-gated", "values of the first layer lost", method(TimeMix7, "mixed", first_values_lost)),
    ("arwkv7-plain", "keys as long as they are", method(ops, "l2_norm", same)),
    ("bailingmoe3-heads", "another bound", on(BoundedDelta, bound=-4.0)),
    ("kimi-k3-sums", "another bound", on(kimi_k3.BoundedDelta, bound=-4.0)),
    ("kimi-k3-sums", "earlier sums are not read", method(kimi_k3.Mixture, "__call__", no_mixture)),
    ("kimi-k3-sums", "one sum for all layers", on(kimi_k3.Block, period=0)),
    ("kimi-k3-sums", "what experts find is not normed", on(kimi_k3.LatentExperts, ffn_routed_norm=lambda g, x: x)),
    ("bailingmoe3-heads", "heads without a gate", on(LatentAttention, attn_gate=None)),
]
"""(file, what is wrong, how)"""


@pytest.mark.parametrize(("name", "wrong", "mutate"), MUTANTS, ids=[f"{name}: {wrong}" for name, wrong, _ in MUTANTS])
def test_is_caught(arch_peer: ArchPeer, name: str, wrong: str, mutate: Mutate, monkeypatch: pytest.MonkeyPatch) -> None:
    path = all_files(arch_peer)[name]
    model = Model.load(path)
    try:
        mutate(model.modules, monkeypatch)
        context = Context(model, n_ctx=256, n_ubatch=256, flash_attn=False)
        try:
            theirs = arch_peer.rows(path, Script().decode(TOKENS))
            assert not nmse(theirs, decode_in(context, pieces_of(TOKENS))) < 2 * LIMIT, wrong
        finally:
            context.close()
    finally:
        model.close()
