"""nemotron_h (Nemotron-H, Nemotron Nano 2 and 3): each layer is Mamba 2, attention without positions, or a feed-forward
network, which may have experts that work in fewer dimensions (llama.cpp: models/nemotron-h.cpp)."""

from typing import Any

from pyggml import ops
from pyggml.model.attention import Attention
from pyggml.model.blocks import MixerBlock
from pyggml.model.experts import Experts
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.linear import Linear
from pyggml.model.mamba import Mamba2
from pyggml.model.mlp import MLP, relu_squared
from pyggml.model.module import Module
from pyggml.model.norms import RMSNorm
from pyggml.tensor import Tensor


class Norm(RMSNorm):
    """Its epsilon may stand under the name of the norms with a mean."""

    @staticmethod
    def epsilon(hp: Hparams) -> float:
        return hp.f32("attention.layer_norm_rms_epsilon", hp.f32("attention.layer_norm_epsilon", 0.0)) or hp.rms_eps


class LatentExperts(Module):
    """Experts without a gate, between two matrices where the file has them, and one that every token uses, of x itself."""

    def __init__(self, hp: Hparams, il: int) -> None:
        keys = hp.expert
        latent = hp.u32("moe_latent_size", 0, least=0)
        n = latent or hp.n_embd
        self.ffn_latent_down = Linear(hp.n_embd, n, required=False, plain=True)
        self.ffn_latent_up = Linear(n, hp.n_embd, required=False, plain=True)
        self.ffn_gate_inp = Linear(hp.n_embd, hp.n_expert, plain=True)
        n_ff = keys.n_ff(il) or hp.n_ff(il) // hp.n_expert_used
        self.experts = Experts(
            n, n_ff, hp.n_expert, hp.n_expert_used, gating="sigmoid", bias=True, renormalise=keys.renormalise,
            scale=keys.scale, activation=relu_squared, router=False,
        )  # fmt: skip
        self.shared = MLP(hp.n_embd, keys.n_ff_shared, relu_squared, suffix="_shexp")

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        inner = g.linear(self.ffn_latent_down, x) if self.ffn_latent_down.weight.there else x
        cur = self.experts(g, inner, g.linear(self.ffn_gate_inp, x))
        if self.ffn_latent_up.weight.there:
            cur = g.linear(self.ffn_latent_up, cur)
        return ops.add(cur, self.shared(g, x), name=f"ffn_out-{self.il}")


class Block(MixerBlock):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il, norm=Norm)
        self.mixer = self._mixer(hp, il)

    def _mixer(self, hp: Hparams, il: int) -> Any:
        if hp.has_ffn(il):
            return LatentExperts(hp, il) if hp.n_expert else MLP(hp.n_embd, hp.n_ff(il), relu_squared)
        if hp.has_attention(il):
            return Attention(hp, il, rope=None, scale=hp.attention_scale)
        return Mamba2(hp, il, norm=Norm)


class Model(CausalLM):
    block = Block
    norm = Norm
