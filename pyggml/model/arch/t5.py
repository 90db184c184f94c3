"""t5: an encoder reads a text, a decoder answers. Its layers attend to its own tokens, then to all of the text; both halves know
positions by how far tokens are apart alone (llama.cpp: models/t5.cpp)."""

from collections.abc import Mapping, Sequence
from typing import Any

from pyggml import ops
from pyggml.errors import ModelError
from pyggml.memory import Need
from pyggml.memory.kv_tensors import KVLayer
from pyggml.model.arch import t5encoder
from pyggml.model.attention import heads
from pyggml.model.graph import LOGITS, BuiltGraph, GraphBuilder, Wanted
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM, Remembers
from pyggml.model.linear import Linear
from pyggml.model.module import Module
from pyggml.model.norms import RMSNorm
from pyggml.model.relative_attention import T5MLP, RelativeAttention
from pyggml.tensor import Tensor


class CrossAttention(Remembers):
    """Of the decoder's tokens over all of the encoder's; scores have neither scale nor bias."""

    def __init__(self, hp: Hparams, il: int) -> None:
        self.n_head, self.n_head_kv, self.head_k, self.head_v = (
            hp.n_head(il),
            hp.n_head_kv(il),
            hp.head_k(),
            hp.head_v(),
        )
        self.layer = KVLayer(il, self.head_k, self.head_v, self.n_head_kv)
        self.cross_attn_q = Linear(hp.n_embd, self.head_k * self.n_head)
        self.cross_attn_k = Linear(hp.n_embd, self.head_k * self.n_head_kv)
        self.cross_attn_v = Linear(hp.n_embd, self.head_v * self.n_head_kv)
        self.cross_attn_o = Linear(self.head_v * self.n_head, hp.n_embd)

    def need(self) -> Need:
        return Need(encoded=self.layer)

    def remember(self, g: GraphBuilder, text: Tensor) -> None:
        """Keep what the layer reads of the encoder's result (n_embd, n_tokens)."""
        k = heads(g.linear(self.cross_attn_k, text), self.head_k, self.n_head_kv)
        g.keep_encoded(self.il, k, heads(g.linear(self.cross_attn_v, text), self.head_v, self.n_head_kv))

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        q = heads(g.linear(self.cross_attn_q, x), self.head_k, self.n_head)
        return g.linear(self.cross_attn_o, g.attend_encoded(self.il, q, scale=1.0))


class DecoderBlock(Module):
    """x += attn(attn_norm(x)); x += cross(cross_attn_norm(x)); x += ffn(ffn_norm(x))."""

    def __init__(self, hp: Hparams, il: int) -> None:
        self.attn_norm, self.cross_attn_norm, self.ffn_norm = RMSNorm.of(hp), RMSNorm.of(hp), RMSNorm.of(hp)
        self.attn = RelativeAttention(hp, il, behind=True)
        self.cross = CrossAttention(hp, il)
        self.ffn = T5MLP(hp, il)

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        x = ops.add(self.attn(g, self.attn_norm(g, x)), x, name=f"cross_inp-{self.il}")
        cur, x = g.select_outputs(self.il, self.cross(g, self.cross_attn_norm(g, x)), x)
        x = ops.add(cur, x, name=f"ffn_inp-{self.il}")
        return ops.add(self.ffn(g, self.ffn_norm(g, x)), x, name=f"l_out-{self.il}")

    def passed_over(self, tensors: Any) -> Any:
        """A bias by distance between both halves, which no implementation reads."""
        yield f"dec.blk.{self.il}.cross_attn_rel_b.weight"


class Model(CausalLM):
    block = DecoderBlock
    norm_name = "dec.output_norm"

    def __init__(self, hp: Hparams, tensors: Mapping[str, Any]) -> None:
        super().__init__(hp, tensors)
        n = hp.u32("decoder_block_count", hp.n_layer)
        if n > hp.n_layer:
            raise ModelError(
                f"key {hp.architecture}.decoder_block_count is {n}, at most block_count ({hp.n_layer}) are possible"
            )
        del self.blk[n:]
        bos = hp.metadata.get("tokenizer.ggml.bos_token_id")
        self.start_token = start = hp.u32("decoder_start_token_id", bos if isinstance(bos, int) else None, least=0)
        if start >= self.n_vocab:
            raise ModelError(
                f"key {hp.architecture}.decoder_start_token_id is {start}, there are {self.n_vocab} tokens"
            )
        vars(self)["enc.blk"] = [t5encoder.Block(hp, il) for il in range(hp.n_layer)]
        vars(self)["enc.output_norm"] = RMSNorm.of(hp)

    @property
    def blk(self) -> list[Any]:
        """The decoder's layers, which the file calls dec.blk."""
        found: list[Any] = vars(self)["dec.blk"]
        return found

    @blk.setter
    def blk(self, layers: list[Any]) -> None:
        vars(self)["dec.blk"] = layers

    def graphs(self) -> tuple[Wanted, ...]:
        return LOGITS, LOGITS._replace(causal=False, encodes=True)

    def embed(self, g: GraphBuilder) -> Tensor:
        cur = super().embed(g)
        if not g.wanted.encodes:
            self.blk[0].attn.attn_rel_b(g)  # before all layers, so that those are alike
        return cur

    def build(self, g: GraphBuilder, layers: Sequence[int] | None = None) -> BuiltGraph:
        if g.wanted.encodes:
            return self._encode(g)
        g.last = len(self.blk) - 1
        return super().build(g, layers)

    def _encode(self, g: GraphBuilder) -> BuiltGraph:
        cur, ends = self.embed(g), []
        for il, block in enumerate(vars(self)["enc.blk"]):
            cur = g.steer(il, block(g, cur))
            ends.append(cur)
        text = vars(self)["enc.output_norm"](g, cur)
        for block in self.blk:
            block.cross.remember(g, text)
        return g.finish(None, ends)
