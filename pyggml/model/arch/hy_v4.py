"""hy_v4 (Hunyuan 4): hyper-connections in place of residuals; latent attention with sinks and gates, of what an indexer
chooses; experts whose gates are cut (llama.cpp: models/hy-v4.cpp)."""

from collections.abc import Mapping
from typing import Any

from pyggml import ops
from pyggml.model.experts import Experts, ExpertsAndShared
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.hyper_connections import Mix, added
from pyggml.model.latent_attention import LatentAttention
from pyggml.model.layers import CausalLM
from pyggml.model.lightning_indexer import Indexer, SparseLatentAttention
from pyggml.model.mlp import GatedMLP
from pyggml.model.module import Module
from pyggml.model.norms import RMSNorm
from pyggml.model.rope import Rope
from pyggml.tensor import Tensor


class Block(Module):
    attn: Any
    ffn: Any

    def __init__(self, hp: Hparams, il: int) -> None:
        self.attn_mix, self.ffn_mix = Mix(hp, "hc_attn"), Mix(hp, "hc_ffn")
        self.attn_norm, self.ffn_norm = RMSNorm.of(hp), RMSNorm.of(hp)
        parts: dict[str, Any] = {
            "rope": Rope(hp, ops.ROPE_NORMAL, factors="none"),
            "gated": "elements",
            "sinks": True,
        }
        if hp.u32("attention.indexer.top_k", 0, least=0):
            chooses = hp.each_flag("attention.indexer.types", hp.n_layer)[il]
            self.attn = SparseLatentAttention(hp, il, indexer=_indexer(hp) if chooses else None, **parts)
        else:
            self.attn = LatentAttention(hp, il, **parts)
        keys = hp.expert
        if il < keys.n_dense:
            self.ffn = GatedMLP(hp.n_embd, hp.n_ff(il))
        else:
            cut: dict[str, Any] = {"kind": ops.GluOp.SWIGLU_CLAMP, "limit": keys.limits[il]} if keys.limits[il] else {}
            experts = Experts.of(hp, il, bias=True, **cut)
            self.ffn = ExpertsAndShared(hp, experts, keys.n_ff(il) * keys.n_shared)

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        """(n_embd, streams, n_tokens) -> the same; after the last layer only the outputs' columns."""
        cur, weights = self.attn_mix(g, x)
        cur = self.attn(g, self.attn_norm(g, cur))
        assert weights is not None
        cur, flat, weights = g.select_outputs(self.il, cur, ops.reshape(x, x.ne[0] * x.ne[1], x.ne[2]), weights)
        x = added(ops.reshape(flat, *x.ne[:2], flat.ne[1]), cur, weights)
        cur, weights = self.ffn_mix(g, x)
        assert weights is not None
        return added(x, self.ffn(g, self.ffn_norm(g, cur)), weights)


def _indexer(hp: Hparams) -> Indexer:
    turn = Rope(hp, ops.ROPE_NORMAL, factors="none")
    return Indexer(hp, hp.u32("attention.q_lora_rank"), turn, eps=hp.rms_eps, last=True)


class Model(CausalLM):
    block = Block

    def __init__(self, hp: Hparams, tensors: Mapping[str, Any]) -> None:
        super().__init__(hp, tensors)
        self.n_streams = hp.u32("hyper_connection.count")
        self.output_mix = Mix(hp, "output_hc", adds=False)

    def embed(self, g: GraphBuilder) -> Tensor:
        """(n_embd, streams, n_tokens), all alike."""
        cur = super().embed(g)
        n_embd, n_tokens = cur.ne[:2]
        return ops.repeat(ops.reshape(cur, n_embd, 1, n_tokens), n_embd, self.n_streams, n_tokens)

    def normed(self, g: GraphBuilder, x: Tensor) -> Tensor:
        return super().normed(g, self.output_mix(g, x)[0])
