"""grovemoe: norms of each head of queries and keys; experts, and smaller ones that several of them share, chosen together
(llama.cpp: models/grovemoe.cpp)."""

from pyggml import ops
from pyggml.dtypes import GGMLType
from pyggml.errors import ModelError
from pyggml.model.attention import Attention
from pyggml.model.blocks import PreNormBlock
from pyggml.model.experts import Experts
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.module import Module
from pyggml.model.rope import Rope
from pyggml.tensor import Tensor


class Block(PreNormBlock):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il)
        self.attn = Attention(hp, il, rope=Rope(hp, ops.ROPE_NEOX), qk_norm="head")
        self.ffn = Grove(hp, il)


class Grove(Module):
    """Experts, and a share of what those say that they share."""

    def __init__(self, hp: Hparams, il: int) -> None:
        self.experts = Experts.of(hp, il, hp.n_ff(il) // hp.n_expert_used, gating="softmax", renormalise=True)
        each = hp.u32("experts_per_group")
        if hp.n_expert % each:
            raise ModelError(
                f"key {hp.architecture}.experts_per_group is {each}, must divide the {hp.n_expert} experts"
            )
        n, n_ff = hp.n_expert // each, hp.u32("expert_chunk_feed_forward_length", 0, least=0) or hp.head_k(il)
        self.shared = SharedByGroup(hp.n_embd, n_ff, n, min(n, hp.n_expert_used), scale=self.experts.scale, each=each)
        self.scale = hp.f32("expert_group_scale", positive=False)

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        assert self.experts.ffn_gate_inp is not None
        logits = g.linear(self.experts.ffn_gate_inp, x)
        cur = self.experts(g, x, logits)
        # they read what the experts say, not what those read (build_moe_ffn's second call in grovemoe.cpp)
        return ops.add(cur, ops.scale(self.shared(g, cur, logits), self.scale), name=f"ffn_out-{self.il}")


class SharedByGroup(Experts):
    """Of the chosen experts' numbers by `each` the whole part; as shares count those of the experts of these numbers."""

    def __init__(self, n_embd: int, n_ff: int, n: int, n_used: int, *, scale: float, each: int) -> None:
        super().__init__(n_embd, n_ff, n, n_used, scale=scale, router=False, suffix="_chexps")
        self.each = each

    def choose(self, g: GraphBuilder, logits: Tensor) -> tuple[Tensor, Tensor]:
        chosen = ops.argsort_top_k(logits, self.n_used)
        if self.each > 1:
            numbers = ops.cpy(chosen, Tensor(GGMLType.F32, chosen.ne))
            numbers = ops.scale(numbers, 1.0 / self.each)
            chosen = ops.cpy(numbers, Tensor(GGMLType.I32, chosen.ne))
        shares = ops.reshape(self._of(logits, chosen), self.n_used, logits.ne[1])
        return chosen, self._scaled(ops.soft_max(shares, name=f"ffn_moe_weights-{self.il}"))


class Model(CausalLM):
    block = Block
