"""glm5-next (GLM 5.3 Flash): Kimi delta attention whose decay has a bound, latent attention without positions that reads chosen pools
of tokens, hyper-connections whose streams are mixed anew, and experts behind the first layers (llama.cpp: models/glm5-next.cpp)."""

import math
from collections.abc import Container, Iterator

from pyggml import ops
from pyggml.errors import ModelError
from pyggml.model.blocks import RemixedBlock
from pyggml.model.experts import Experts, ExpertsAndShared, clamped
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.kimi_delta import KimiDelta
from pyggml.model.layers import CausalLM
from pyggml.model.mlp import GatedMLP
from pyggml.model.module import Weight
from pyggml.model.pooled_indexer import PooledLatentAttention
from pyggml.tensor import Tensor

INDEXER = ("indexer.k_norm", "indexer.proj", "indexer.attn_k", "indexer.attn_q_b", "indexer_compressor_gate",
           "indexer_compressor_ape")  # fmt: skip


class BoundedDelta(KimiDelta):
    """The logarithm of the decay is a sigmoid times its lower bound, where the file has one."""

    def declare(self, hp: Hparams) -> None:
        super().declare(hp)
        self.eps = 1e-6
        self.ssm_a = Weight(self.n_head, bare=True)
        none = hp.find("kda.gate_lower_bound")[1] in (None, -math.inf)
        self.bound = -math.inf if none else hp.f32("kda.gate_lower_bound", positive=False)

    def decay(self, steps: Tensor, a: Tensor) -> Tensor:
        if math.isinf(self.bound):
            return super().decay(steps, a)
        return ops.scale(ops.unary(ops.scale(ops.mul(steps, a), -1.0), ops.UnaryOp.SIGMOID), self.bound)


class Block(RemixedBlock):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il)
        self.sparse, self.chooses = hp.has_attention(il), _chooses(hp, il)
        self.attn = (
            PooledLatentAttention(hp, il, rope=None, chooses=self.chooses) if self.sparse else BoundedDelta(hp, il)
        )
        keys = hp.expert
        cut, cut_shared = clamped(hp, il)
        if il < keys.n_dense:
            self.ffn = GatedMLP(hp.n_embd, hp.n_ff(il), **cut_shared)
        else:
            experts = Experts.of(hp, il, bias=True, gating=keys.gating or "sigmoid", **cut)
            self.ffn = ExpertsAndShared(hp, experts, keys.n_ff(il) * keys.n_shared, **cut_shared)

    def passed_over(self, tensors: Container[str]) -> Iterator[str]:
        """An indexer that a layer does not use."""
        if self.sparse and not self.chooses:
            yield from (f"blk.{self.il}.{name}.weight" for name in INDEXER)
            yield f"blk.{self.il}.indexer.k_norm.bias"


def _chooses(hp: Hparams, il: int) -> bool:
    """Whether a layer chooses what it reads; else it reads what an earlier one has chosen."""
    if hp.find("attention.indexer.types")[1] is None:
        return True
    flags = hp.flags("attention.indexer.types", hp.n_layer)
    first = next((i for i in range(hp.n_layer) if hp.has_attention(i)), 0)
    if not flags[first]:
        raise ModelError(
            f"key {hp.architecture}.attention.indexer.types: layer {first} reads what none has chosen before"
        )
    return flags[il]


class Model(CausalLM):
    block = Block

    def embed(self, g: GraphBuilder) -> Tensor:
        """(n_embd, streams, n_tokens), all alike."""
        cur = super().embed(g)
        n_embd, n_tokens = cur.ne[:2]
        return ops.repeat(ops.reshape(cur, n_embd, 1, n_tokens), n_embd, self.blk[0].attn_mix.n, n_tokens)

    def normed(self, g: GraphBuilder, x: Tensor) -> Tensor:
        n_embd, n = x.ne[:2]
        (flat,) = g.select_outputs(g.last, ops.reshape(x, n_embd * n, x.ne[2]))
        streams = [ops.view(flat, (n_embd, flat.ne[1]), (flat.nb[1],), i * n_embd * flat.nb[0]) for i in range(n)]
        total = streams[0]
        for stream in streams[1:]:
            total = ops.add(total, stream)
        return super().normed(g, ops.scale(total, 1.0 / n))
