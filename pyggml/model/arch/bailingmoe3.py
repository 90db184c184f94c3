"""bailingmoe3 (Ling 3): Kimi delta attention whose decay has a bound, latent attention with a gate for each head, and experts
behind the first layers (llama.cpp: models/bailingmoe3.cpp)."""

from pyggml import ops
from pyggml.model.blocks import PreNormBlock
from pyggml.model.experts import Experts, ExpertsAndShared
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.kimi_delta import KimiDelta
from pyggml.model.latent_attention import LatentAttention
from pyggml.model.layers import CausalLM
from pyggml.model.linear import Linear
from pyggml.model.mlp import GatedMLP
from pyggml.model.module import Weight
from pyggml.model.rope import Rope
from pyggml.tensor import Tensor


class BoundedDelta(KimiDelta):
    """The logarithm of the decay is a sigmoid times its lower bound; decays and gates come of one matrix each."""

    def declare(self, hp: Hparams) -> None:
        self.bound = hp.f32("kda.gate_lower_bound", positive=False)
        self.ssm_a = Weight(1, self.n_head, bare=True)
        self.ssm_f_a, self.ssm_g_a = Linear(hp.n_embd, self.n), Linear(hp.n_embd, self.n)

    def steps(self, g: GraphBuilder, x: Tensor) -> Tensor:
        return g.linear(self.ssm_f_a, x)

    def gates(self, g: GraphBuilder, x: Tensor) -> Tensor:
        return g.linear(self.ssm_g_a, x)

    def decay(self, steps: Tensor, a: Tensor) -> Tensor:
        return ops.scale(ops.unary(ops.mul(steps, a), ops.UnaryOp.SIGMOID), self.bound)


class Block(PreNormBlock):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il)
        if hp.has_attention(il):
            mode = ops.ROPE_MROPE if hp.has_sections else ops.ROPE_NORMAL
            self.attn = LatentAttention(hp, il, rope=Rope(hp, mode), gated="heads")
        else:
            self.attn = BoundedDelta(hp, il)
        keys = hp.expert
        limit = keys.limits_shared[il]
        if il < keys.n_dense:
            self.ffn = GatedMLP(hp.n_embd, hp.n_ff(il), limit=limit)
        else:
            experts = Experts.of(hp, il, bias=True, limit=keys.limits[il])
            n_ff_shared = keys.n_ff_shared or keys.n_ff(il) * max(1, keys.n_shared)
            self.ffn = ExpertsAndShared(hp, experts, n_ff_shared, limit=limit)


class Model(CausalLM):
    block = Block
