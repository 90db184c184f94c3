"""qwen4exp (Qwen 4, experimental): gated delta nets, and gated attention that reads chosen pools of tokens; streams in place of the
residual, read by gates of low rank; experts; embeddings that the last tokens choose together (llama.cpp: models/qwen4exp.cpp)."""

from collections.abc import Container, Iterator, Mapping
from typing import Any

from pyggml import ops
from pyggml.errors import ModelError
from pyggml.model.delta_net import DeltaNet
from pyggml.model.experts import Experts, ExpertsAndShared
from pyggml.model.gated_attention import GatedAttention
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.hyper_connections import GatedMix
from pyggml.model.layers import CausalLM
from pyggml.model.module import Module
from pyggml.model.ngram_embeddings import FOUND, NgramKeys, NgramStreams, table_of
from pyggml.model.pooled_indexer import PooledGatedAttention
from pyggml.model.rope import Rope
from pyggml.model.states import is_recurrent
from pyggml.tensor import Tensor

INDEXER = ("q_proj", "k_proj", "q_norm", "k_norm")


class SigmoidDeltaNet(DeltaNet):
    """Its result is gated by a sigmoid."""

    def gated(self, z: Tensor, y: Tensor) -> Tensor:
        return ops.mul(y, ops.unary(z, ops.UnaryOp.SIGMOID), name=f"delta_out-{self.il}")


class Block(Module):
    def __init__(self, hp: Hparams, il: int) -> None:
        keys, recurrent = NgramKeys(hp), is_recurrent(hp, il)
        if il in keys.layers and not recurrent:
            raise ModelError(f"key {hp.architecture}.ple.layers names layer {il}, which has attention")
        self.ngrams = NgramStreams(hp, keys) if il in keys.layers else None
        self.attn_mix, self.ffn_mix = GatedMix(hp, "hc_attn"), GatedMix(hp, "hc_ffn")
        pool = _pool(hp, il)
        self.dense = not recurrent and not pool
        more: dict[str, Any] = {"rope": Rope(hp, ops.ROPE_IMROPE), "qk_norm": "head", "scale": hp.attention_scale}
        self.attn: Any
        if recurrent:
            self.attn = SigmoidDeltaNet(hp, il)
        else:
            self.attn = PooledGatedAttention(hp, il, pool=pool, **more) if pool else GatedAttention(hp, il, **more)
        n_ff = hp.expert.n_ff(il) or hp.n_ff(il) // hp.n_expert_used
        experts = Experts.of(hp, il, n_ff, gating="softmax", renormalise=True)
        self.ffn = ExpertsAndShared(hp, experts, hp.expert.n_ff_shared or hp.n_ff(il), gated=True)

    def passed_over(self, tensors: Container[str]) -> Iterator[str]:
        """An indexer that a layer does not use."""
        if self.dense:
            yield from (f"blk.{self.il}.indexer.{name}.weight" for name in INDEXER)

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        """(n_embd, streams, n_tokens) -> the same; after the last layer only the outputs' columns."""
        n_embd, n = x.ne[:2]
        if self.ngrams is not None:
            x = self.ngrams(g, x)
        cur, weights = self.attn_mix(g, x)
        assert weights is not None
        flat = ops.reshape(x, n_embd * n, x.ne[2])
        cur, weights, flat = g.select_outputs(self.il, self.attn(g, cur), weights, flat)
        x = ops.dsv4_hc_post(cur, ops.reshape(flat, n_embd, n, flat.ne[1]), weights, name=f"hc_attn_post-{self.il}")
        cur, weights = self.ffn_mix(g, x)
        assert weights is not None
        return ops.dsv4_hc_post(self.ffn(g, cur), x, weights, name=f"l_out-{self.il}")


def _pool(hp: Hparams, il: int) -> int:
    """Tokens of a pool, the same for all layers that have them; 0: the layer reads all."""
    full, value = hp.find("attention.compress_ratios")
    ratios = [0] * hp.n_layer_all if value is None else list(hp.items(value))
    ratios = ratios * hp.n_layer_all if len(ratios) == 1 else ratios
    if len(ratios) < hp.n_layer_all or len(set(ratios) - {0}) > 1 or any(not isinstance(n, int) for n in ratios):
        raise ModelError(
            f"key {full} is {value!r:.60}, must say 0 or one number for each of the {hp.n_layer_all} layers"
        )
    return int(ratios[il])


class Model(CausalLM):
    block = Block
    norm = None

    def __init__(self, hp: Hparams, tensors: Mapping[str, Any]) -> None:
        super().__init__(hp, tensors)
        self.output_mix = GatedMix(hp, "output_hc", adds=False)
        self.per_layer_token_embd = table_of(hp, tensors)

    def embed(self, g: GraphBuilder) -> Tensor:
        """(n_embd, streams, n_tokens), all alike."""
        if self.per_layer_token_embd is not None:
            g.handed_on[FOUND] = self.per_layer_token_embd(g)
        cur = super().embed(g)
        n_embd, n_tokens = cur.ne[:2]
        return ops.repeat(ops.reshape(cur, n_embd, 1, n_tokens), n_embd, self.output_mix.n, n_tokens)

    def normed(self, g: GraphBuilder, x: Tensor) -> Tensor:
        return self.output_mix(g, x)[0]
