"""general.architecture = llama: RMS norms, rope on neighbouring pairs, grouped-query attention, SwiGLU; or, with
experts (Mixtral), as many SwiGLUs a token as its router wants.

Owns the names of its weights and the order of its nodes, which is llama.cpp's (models/llama.cpp, llama-graph.cpp);
knows no device and no address.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from pyggml import ops
from pyggml.dtypes import GGMLType
from pyggml.errors import ModelError
from pyggml.graph import build_forward
from pyggml.model.architecture import INPUT_LAYER, Architecture, Built, Spec, Weights
from pyggml.model.config import Config, read_config
from pyggml.model.kv_cache import KVCache
from pyggml.ops import Op
from pyggml.tensor import Flag, Tensor

ROPE_FACTORS = {False: ("rope_freqs",), True: ("rope_factors_short", "rope_factors_long")}
"""By whether the file's scaling is longrope; the last ones then count in contexts longer than rope_n_ctx_short."""

ATTENTION, DENSE = ("attn_q", "attn_k", "attn_v", "attn_output"), ("ffn_gate", "ffn_up", "ffn_down")
EXPERTS = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")


class Llama(Architecture):
    name = "llama"

    def config(self, metadata: Mapping[str, Any]) -> Config:
        return read_config(metadata, self.name)

    def specs(self, config: Config, tensors: Mapping[str, Any]) -> Iterator[Spec]:
        embd, n_ff, out = config.n_embd, config.n_ff, config.n_layer
        n_q, n_k, n_v = config.n_embd_head_k * config.n_head, config.n_embd_k_gqa, config.n_embd_v_gqa
        n_kqv = config.n_embd_head_v * config.n_head
        if "token_embd.weight" not in tensors:
            raise ModelError("tensor token_embd.weight is missing")
        n_vocab = tensors["token_embd.weight"].ne[1]
        yield Spec(INPUT_LAYER, "token_embd", "token_embd.weight", (embd, n_vocab), Op.GET_ROWS)
        yield Spec(out, "output_norm", "output_norm.weight", (embd,), Op.MUL)
        tied = "output.weight" not in tensors
        yield Spec(out, "output", "token_embd.weight" if tied else "output.weight", (embd, n_vocab), Op.MUL_MAT)
        if _scaled_output(tensors):
            yield Spec(out, "output_s", "output.scale", (1,), Op.MUL, required=False)
        for il in range(config.n_layer):
            for key in ROPE_FACTORS[config.rope_scaling == "longrope"]:
                yield Spec(il, key, f"{key}.weight", (config.n_rot // 2,), Op.ROPE, required=False)
            yield Spec(il, "attn_norm", f"blk.{il}.attn_norm.weight", (embd,), Op.MUL)
            yield Spec(il, "ffn_norm", f"blk.{il}.ffn_norm.weight", (embd,), Op.MUL)
            for key, ne in {
                "attn_q": (embd, n_q),
                "attn_k": (embd, n_k),
                "attn_v": (embd, n_v),
                "attn_output": (n_kqv, embd),
                **(
                    {}
                    if config.n_expert
                    else {"ffn_gate": (embd, n_ff), "ffn_up": (embd, n_ff), "ffn_down": (n_ff, embd)}
                ),
            }.items():
                yield Spec(il, key, f"blk.{il}.{key}.weight", ne, Op.MUL_MAT)
                yield Spec(il, f"{key}_b", f"blk.{il}.{key}.bias", ne[1:], Op.ADD, required=False)
                yield Spec(il, f"{key}_s", f"blk.{il}.{key}.scale", (1,), Op.MUL, required=False)
            if config.n_expert:
                n = config.n_expert
                yield Spec(il, "ffn_gate_inp", f"blk.{il}.ffn_gate_inp.weight", (embd, n), Op.MUL_MAT)
                for key, matrices, required in (
                    ("ffn_gate_exps", (embd, n_ff, n), False),
                    ("ffn_up_exps", (embd, n_ff, n), True),
                    ("ffn_down_exps", (n_ff, embd, n), True),
                ):
                    yield Spec(il, key, f"blk.{il}.{key}.weight", matrices, Op.MUL_MAT_ID, required)
                    if f"blk.{il}.{key}.weight" in tensors:
                        yield Spec(il, f"{key}_s", f"blk.{il}.{key}.scale", (n,), Op.REPEAT, required=False)

    def unread(self, config: Config, tensors: Mapping[str, Any]) -> Iterator[str]:
        """Scales of activations, which conversions to NVFP4 leave beside the weights: for devices that quantise with
        them (llama-model.cpp: load_tensors, "input_scale")."""
        for il in range(config.n_layer):
            for key in (*ATTENTION, *(EXPERTS if config.n_expert else DENSE)):
                if f"blk.{il}.{key}.weight" in tensors:
                    yield f"blk.{il}.{key}.input_scale"
        if _scaled_output(tensors):
            yield "output.input_scale"

    def build(
        self, config: Config, weights: Weights, cache: KVCache, n_tokens: int, n_kv: int, n_outputs: int
    ) -> Built:
        return _Builder(config, weights, cache, n_tokens, n_kv, n_outputs).build()

    def rotate(
        self, config: Config, weights: Weights, cache: KVCache, keys: Tensor, positions: Tensor, il: int
    ) -> Tensor:
        # keys have their magnitude already. llama.cpp gives it to all of them again at each shift.
        magnitude = 1.0 / (1.0 - 0.1 * math.log(config.rope_freq_scale)) if config.rope_ext_factor else 1.0
        config = replace(config, rope_attn_factor=magnitude)
        return _rotate(keys, positions, config, weights.layers[il], cache.n_cells, name=f"k_shift-{il}")


class _Builder:
    """Builds one graph; `order` lists the nodes that must be computed in this order, each with all it needs."""

    def __init__(
        self, config: Config, weights: Weights, cache: KVCache, n_tokens: int, n_kv: int, n_outputs: int
    ) -> None:
        assert 0 <= n_outputs <= n_tokens <= n_kv, (n_outputs, n_tokens, n_kv)
        self.config, self.weights, self.cache = config, weights, cache
        self.n_tokens, self.n_kv, self.n_outputs = n_tokens, n_kv, n_outputs
        self.order: list[Tensor] = []
        self.tokens = _input(GGMLType.I32, "inp_tokens", n_tokens)
        self.positions = _input(GGMLType.I32, "inp_pos", n_tokens)
        self.k_rows = _input(GGMLType.I64, "k_rows", n_tokens)
        self.v_rows = self.k_rows
        if cache.transposed_v:
            self.v_rows = _input(GGMLType.I64, "v_rows", cache.v_row_count(n_tokens))
        mask_type = GGMLType.F32 if cache.transposed_v else GGMLType.F16
        self.mask = _input(mask_type, "mask", n_kv, n_tokens)
        # all tokens are outputs, or none is: nothing to pick
        self.out_ids = _input(GGMLType.I32, "out_ids", n_outputs) if 0 < n_outputs < n_tokens else None

    def build(self) -> Built:
        cur = ops.get_rows(self.weights.top["token_embd"], self.tokens, name="inp_embd")
        self.order.append(cur)
        logits: Tensor | None = None
        for il, layer in enumerate(self.weights.layers):
            last = il == self.config.n_layer - 1
            if last and not self.n_outputs:
                self.store(il, self.norm(cur, layer["attn_norm"], f"attn_norm-{il}"))  # the cache wants this layer's K and V, no more
                break
            cur = self.layer(il, cur, last)
        else:
            cur = self.norm(cur, self.weights.top["output_norm"], "result_norm")
            logits = ops.mul_mat(self.weights.top["output"], cur, name="result_output")
            logits = _scaled(logits, self.weights.top.get("output_s"), "result_output_s")
            logits.flags |= Flag.OUTPUT
            self.order.append(logits)
        graph = build_forward(self.order)
        return Built(
            graph, self.tokens, self.positions, self.k_rows, self.v_rows, self.mask, self.out_ids, logits
        )  # fmt: skip

    def layer(self, il: int, residual: Tensor, last: bool) -> Tensor:
        """(n_embd, n_tokens) -> the same; after the last layer only the outputs' columns."""
        layer = self.weights.layers[il]
        cur = self.norm(residual, layer["attn_norm"], f"attn_norm-{il}")
        head = self.config.n_embd_head_k
        q = ops.reshape(self.linear(il, "attn_q", cur), head, self.config.n_head, self.n_tokens)
        self.order.append(q := self.cache.query(il, self.rope(q, il)))
        self.store(il, cur)
        cur = self.attention(il, q)
        self.order.append(cur)
        cur = self.linear(il, "attn_output", cur)
        if last and self.out_ids is not None:
            cur = ops.get_rows(cur, self.out_ids)
            residual = ops.get_rows(residual, self.out_ids)
        residual = ops.add(cur, residual, name=f"ffn_inp-{il}")
        cur = self.norm(residual, layer["ffn_norm"], f"ffn_norm-{il}")
        cur = self.experts(il, cur) if self.config.n_expert else self.feed_forward(il, cur)
        return ops.add(cur, residual, name=f"l_out-{il}")

    def feed_forward(self, il: int, cur: Tensor) -> Tensor:
        up = self.linear(il, "ffn_up", cur)
        cur = ops.swiglu(self.linear(il, "ffn_gate", cur), up, name=f"ffn_swiglu-{il}")
        return self.linear(il, "ffn_down", cur)

    def experts(self, il: int, cur: Tensor) -> Tensor:
        """The experts with the largest logits, each with its share (llama-graph.cpp: build_moe_ffn).

        llama.cpp divides the chosen ones of all probabilities by their sum; that is the soft max of the chosen logits.
        """
        used, n_tokens = self.config.n_expert_used, cur.ne[1]
        logits = self.linear(il, "ffn_gate_inp", cur)
        chosen = ops.argsort_top_k(logits, used, name=f"ffn_moe_topk-{il}")
        shares = ops.get_rows(ops.reshape(logits, 1, self.config.n_expert, n_tokens), chosen)
        shares = ops.soft_max(ops.reshape(shares, used, n_tokens), name=f"ffn_moe_weights-{il}")
        self.order.append(shares)
        cur = ops.reshape(cur, cur.ne[0], 1, n_tokens)
        up = self.each_linear(il, "ffn_up", cur, chosen)
        if "ffn_gate_exps" in self.weights.layers[il]:
            cur = ops.swiglu(self.each_linear(il, "ffn_gate", cur, chosen), up)
        else:
            cur = ops.unary(up, ops.UnaryOp.SILU, name=f"ffn_moe_silu-{il}")
        cur = self.each_linear(il, "ffn_down", cur, chosen)
        cur = ops.mul(cur, ops.reshape(shares, 1, used, n_tokens), name=f"ffn_moe_weighted-{il}")
        parts = [ops.view(cur, (cur.ne[0], n_tokens), (cur.nb[2],), i * cur.nb[1]) for i in range(used)]
        total = parts[0]
        for part in parts[1:]:
            total = ops.add(total, part)
        return total

    def store(self, il: int, cur: Tensor) -> None:
        """Project K and V of the tokens and write them to their cells."""
        config = self.config
        k = ops.reshape(self.linear(il, "attn_k", cur), config.n_embd_head_k, config.n_head_kv, self.n_tokens)
        v = ops.reshape(self.linear(il, "attn_v", cur), config.n_embd_head_v, config.n_head_kv, self.n_tokens)
        k = self.rope(k, il)
        self.order += [v, k, self.cache.write_k(il, k, self.k_rows), self.cache.write_v(il, v, self.v_rows)]

    def attention(self, il: int, q: Tensor) -> Tensor:
        """q (head, n_head, n_tokens) -> (head_v * n_head, n_tokens) (llama-graph.cpp: build_attn_mha)."""
        scale = 1.0 / math.sqrt(self.config.n_embd_head_k)
        q = ops.permute(q, 0, 2, 1, 3)
        k, v = self.cache.read_k(il, self.n_kv), self.cache.read_v(il, self.n_kv)
        if self.cache.transposed_v:
            kq = ops.mul_mat(k, q, name=f"kq-{il}")
            kq = ops.soft_max(kq, self.mask, scale, name=f"kq_soft_max-{il}")
            kqv = ops.permute(ops.mul_mat(v, kq, name=f"kqv-{il}"), 0, 2, 1, 3)
            cur = ops.cont(kqv, kqv.ne[0] * kqv.ne[1], self.n_tokens, name=f"kqv_out-{il}")
        else:
            k, v = _as_f16(k), _as_f16(v)
            cur = ops.flash_attn_ext(q, k, v, self.mask, scale, name=f"fattn-{il}")
            cur = ops.reshape(cur, cur.ne[0] * cur.ne[1], self.n_tokens, name=f"kqv_out-{il}")
        return self.cache.result(il, cur)

    def linear(self, il: int, key: str, x: Tensor) -> Tensor:
        """The product with its bias and its scale, which comes first in attention (build_qkv), last in build_ffn."""
        layer = self.weights.layers[il]
        y = ops.mul_mat(layer[key], x, name=f"{key}-{il}")
        bias, scale = layer.get(f"{key}_b"), layer.get(f"{key}_s")
        if key not in DENSE:
            y, scale = _scaled(y, scale, f"{key}_s-{il}"), None
        if bias is not None:
            y = ops.add(y, bias, name=f"{key}_b-{il}")
        return _scaled(y, scale, f"{key}_s-{il}")

    def each_linear(self, il: int, key: str, x: Tensor, chosen: Tensor) -> Tensor:
        """The chosen experts' products (n, used, n_tokens), each with the scale of its expert (build_lora_mm_id)."""
        layer, n_tokens = self.weights.layers[il], chosen.ne[1]
        y = ops.mul_mat_id(layer[f"{key}_exps"], x, chosen, name=f"{key.replace('_', '_moe_')}-{il}")
        scale = layer.get(f"{key}_exps_s")
        if scale is None:
            return y
        n = self.config.n_expert
        scales = ops.repeat(ops.reshape(scale, 1, n), 1, n, n_tokens)
        return ops.mul(y, ops.get_rows(scales, chosen), name=f"{key}_exps_s-{il}")

    def norm(self, x: Tensor, weight: Tensor, name: str = "") -> Tensor:
        return ops.mul(ops.rms_norm(x, self.config.rms_eps), weight, name=name)

    def rope(self, x: Tensor, il: int) -> Tensor:
        return _rotate(x, self.positions, self.config, self.weights.layers[il], self.cache.n_cells, name=f"rope-{il}")


def _rotate(
    x: Tensor, positions: Tensor, config: Config, layer: Mapping[str, Tensor], n_ctx: int, name: str = ""
) -> Tensor:  # fmt: skip
    """x (head, n_head, n_tokens), queries or keys of a layer, turned by its tokens' positions."""
    factors = ROPE_FACTORS[config.rope_scaling == "longrope"]
    key = factors[-1] if n_ctx > config.rope_n_ctx_short else factors[0]
    return ops.rope(
        x, positions, config.n_rot, ops.ROPE_NORMAL, factors=layer.get(key), n_ctx_orig=config.rope_n_ctx_orig,
        freq_base=config.rope_freq_base, freq_scale=config.rope_freq_scale, ext_factor=config.rope_ext_factor,
        attn_factor=config.rope_attn_factor, beta_fast=config.rope_beta_fast, beta_slow=config.rope_beta_slow,
        name=name,
    )  # fmt: skip


def _scaled_output(tensors: Mapping[str, Any]) -> bool:
    """Whether the output may have scales beside it: an NVFP4 matrix of its own."""
    return "output.weight" in tensors and tensors["output.weight"].type == GGMLType.NVFP4


def _scaled(x: Tensor, scale: Tensor | None, name: str) -> Tensor:
    return x if scale is None else ops.mul(x, scale, name=name)


def _input(dtype: GGMLType, name: str, *ne: int) -> Tensor:
    return Tensor(dtype, ne, flags=Flag.INPUT, name=name)


def _as_f16(t: Tensor) -> Tensor:
    """For flash attention an F32 cache is converted to F16 in each run, as llama.cpp does; other types are read as they
    are."""
    return t if t.type != GGMLType.F32 else ops.cpy(t, Tensor(GGMLType.F16, t.ne, name=f"{t.name} (f16)"))
