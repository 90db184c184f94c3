"""Tiny random models that make embeddings, F32 all: the reference's test-llama-archs writes none of them.

Owns which tensors and keys each has, after load_arch_tensors and load_arch_hparams of models/*.cpp; must not know how we
compute. Queries and keys are large, so that tokens attend to some and not all alike.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from made_folders import made

from pyggml.cachedir import cache_dir

N_EMBD, N_HEAD, N_KV, HEAD, N_FF, N_VOCAB, N_CTX, N_LAYER = 64, 4, 2, 16, 96, 128, 128, 4
N_EXPERT, N_USED, N_TYPES, WINDOW, N_BUCKETS = 8, 3, 2, 16, 12
VERSION = 1
Shape = tuple[int, ...]


def _norm(name: str, *, bias: bool = True) -> dict[str, Shape]:
    return {f"{name}.weight": (N_EMBD,)} | ({f"{name}.bias": (N_EMBD,)} if bias else {})


def _linear(name: str, n_in: int, n_out: int, *, bias: bool = True) -> dict[str, Shape]:
    return {f"{name}.weight": (n_in, n_out)} | ({f"{name}.bias": (n_out,)} if bias else {})


def _qkv(b: str, n_kv: int = N_HEAD, *, bias: bool = True, fused: bool = False) -> dict[str, Shape]:
    wide = HEAD * n_kv
    if fused:
        return _linear(f"{b}attn_qkv", N_EMBD, N_EMBD + 2 * wide, bias=bias)
    q = _linear(f"{b}attn_q", N_EMBD, N_EMBD, bias=bias)
    return q | _linear(f"{b}attn_k", N_EMBD, wide, bias=bias) | _linear(f"{b}attn_v", N_EMBD, wide, bias=bias)


def _mlp(b: str, *, gate: bool = False, bias: bool = True, n_up: int = N_FF) -> dict[str, Shape]:
    found = _linear(f"{b}ffn_up", N_EMBD, n_up, bias=bias) | _linear(f"{b}ffn_down", N_FF, N_EMBD, bias=bias)
    return found | (_linear(f"{b}ffn_gate", N_EMBD, N_FF, bias=False) if gate else {})


def _bert_layer(b: str, mlp: dict[str, Shape], *, fused: bool = False) -> dict[str, Shape]:
    out = _linear(f"{b}attn_output", N_EMBD, N_EMBD)
    return _qkv(b, fused=fused) | out | _norm(f"{b}attn_output_norm") | mlp | _norm(f"{b}layer_output_norm")


def _llama_layer(b: str, mlp: dict[str, Shape], *, n_kv: int = N_HEAD, fused: bool = False) -> dict[str, Shape]:
    found = _qkv(b, n_kv, bias=False, fused=fused) | _linear(f"{b}attn_output", N_EMBD, N_EMBD, bias=False) | mlp
    return found | _norm(f"{b}attn_norm", bias=False) | _norm(f"{b}ffn_norm", bias=False)


def _t5_layer(b: str, mlp: dict[str, Shape], head: int, *, biased: bool) -> dict[str, Shape]:
    wide = head * N_HEAD
    found = {f"{b}attn_{c}.weight": (N_EMBD, wide) for c in "qkv"} | {f"{b}attn_o.weight": (wide, N_EMBD)} | mlp
    found |= _norm(f"{b}attn_norm", bias=False) | _norm(f"{b}ffn_norm", bias=False)
    return found | ({f"{b}attn_rel_b.weight": (N_HEAD, N_BUCKETS)} if biased else {})


def _bert_ends(*, positions: bool = False) -> dict[str, Shape]:
    found = {"token_embd.weight": (N_EMBD, N_VOCAB), "token_types.weight": (N_EMBD, N_TYPES)} | _norm("token_embd_norm")
    return found | ({"position_embd.weight": (N_EMBD, N_CTX)} if positions else {})


def _classifier(n_out: int, *, norm: bool = False, bias: bool = True) -> dict[str, Shape]:
    found = _linear("cls", N_EMBD, N_EMBD, bias=bias) | _linear("cls.output", N_EMBD, n_out)
    return found | (_norm("cls.norm", bias=False) if norm else {})


def _tensors(name: str) -> dict[str, Shape]:
    layers: dict[str, Shape] = {}
    for il in range(N_LAYER):
        b = f"blk.{il}."
        moe = {f"{b}ffn_gate_inp.weight": (N_EMBD, N_EXPERT), f"{b}ffn_up_exps.weight": (N_EMBD, N_FF, N_EXPERT),
               f"{b}ffn_down_exps.weight": (N_FF, N_EMBD, N_EXPERT)}  # fmt: skip
        norms = {f"{b}attn_q_norm.weight": (HEAD,), f"{b}attn_k_norm.weight": (HEAD,)}
        row_norms = _norm(f"{b}attn_q_norm") | _norm(f"{b}attn_k_norm") | _norm(f"{b}attn_norm_2")
        post = _norm(f"{b}post_attention_norm", bias=False) | _norm(f"{b}post_ffw_norm", bias=False)
        per_layer = _linear(f"{b}inp_gate", N_EMBD, 16, bias=False) | _linear(f"{b}proj", 16, N_EMBD, bias=False)
        per_layer |= _norm(f"{b}post_norm", bias=False) | {f"{b}layer_output_scale.weight": (1,)}
        wide = _mlp(b, bias=False, n_up=2 * N_FF)
        layer = {
            "bert": lambda b=b: _bert_layer(b, _mlp(b)),
            "bert-fused": lambda b=b: _bert_layer(b, _mlp(b), fused=True),
            "nomic-bert": lambda b=b: _bert_layer(b, _mlp(b, gate=True, bias=False)),
            "nomic-bert-moe": lambda b=b, il=il, moe=moe: _bert_layer(b, moe if il % 2 else _mlp(b)),
            "jina-bert-v2": lambda b=b, rows=row_norms: _bert_layer(b, _mlp(b, gate=True)) | rows,
            "jina-bert-v2-fused": lambda b=b: _bert_layer(b, _mlp(b, n_up=2 * N_FF)),
            "jina-bert-v2-plain": lambda b=b: _bert_layer(b, _mlp(b)),
            "jina-bert-v3": lambda b=b: _bert_layer(b, _mlp(b)),
            "modern-bert": lambda b=b, wide=wide: _llama_layer(b, wide, fused=True),
            "modern-bert-deciding": lambda b=b, wide=wide: _llama_layer(b, wide, fused=True),
            "neo-bert": lambda b=b, wide=wide: _llama_layer(b, wide, n_kv=N_KV, fused=True),
            "eurobert": lambda b=b: _llama_layer(b, _mlp(b, gate=True, bias=False), n_kv=N_KV),
            "gemma-embedding": lambda b=b, more=norms | post: (
                _llama_layer(b, _mlp(b, gate=True, bias=False), n_kv=N_KV) | more
            ),
            "gemma-embedding2": lambda b=b, more=norms | post | per_layer: (
                _llama_layer(b, _mlp(b, gate=True, bias=False), n_kv=N_KV) | more
            ),
            "llama-embed": lambda b=b: _llama_layer(b, _mlp(b, gate=True, bias=False), n_kv=N_KV),
            "llama-embed-causal": lambda b=b: _llama_layer(b, _mlp(b, gate=True, bias=False), n_kv=N_KV),
            "t5encoder": lambda b=b, il=il: _t5_layer(b, _mlp(b, bias=False), HEAD, biased=not il),
            "t5encoder-gated": lambda b=b, il=il: _t5_layer(b, _mlp(b, gate=True, bias=False), 24, biased=il in (0, 2)),
            "qwen3": lambda b=b, more=norms: _llama_layer(b, _mlp(b, gate=True, bias=False), n_kv=N_KV) | more,
        }[name]()
        if name == "modern-bert-deciding" and il >= 2:
            layer = _qkv(b, fused=True) | _linear(f"{b}attn_output", N_EMBD, N_EMBD) | _norm(f"{b}attn_norm")
            layer |= _norm(f"{b}ffn_norm") | _linear(f"{b}ffn_up", N_EMBD, 80) | _linear(f"{b}ffn_down", 80, N_EMBD)
        if name.startswith("modern-bert") and not il:
            del layer["blk.0.attn_norm.weight"]
        layers |= {f"enc.{key}" if name.startswith("t5") else key: shape for key, shape in layer.items()}
    token = {"token_embd.weight": (N_EMBD, N_VOCAB)}
    last = token | _norm("output_norm", bias=False)
    dense = {"dense_2.weight": (N_EMBD, 80), "dense_3.weight": (80, N_EMBD)}
    ends: dict[str, dict[str, Shape]] = {
        "bert": _bert_ends(positions=True) | _classifier(3),
        "bert-fused": _bert_ends(positions=True) | _linear("cls.output", N_EMBD, 1),
        "jina-bert-v2": _bert_ends() | _linear("cls", N_EMBD, 1),
        "modern-bert": last | _norm("token_embd_norm", bias=False) | _classifier(1, norm=True, bias=False),
        "modern-bert-deciding": last
        | _norm("token_embd_norm", bias=False)
        | _classifier(1)
        | _norm("cls.norm")
        | {"token_types.weight": (N_EMBD, 3)},
        "neo-bert": token | _norm("enc.output_norm", bias=False) | _classifier(2),
        "eurobert": last,
        "gemma-embedding": last | dense,
        "gemma-embedding2": last
        | _linear("per_layer_model_proj", N_EMBD, 16 * N_LAYER, bias=False)
        | {"per_layer_proj_norm.weight": (16,)}
        | _linear("output", N_EMBD, 48, bias=False),
        "t5encoder": token | _norm("enc.output_norm", bias=False),
        "t5encoder-gated": token | _norm("enc.output_norm", bias=False),
        "llama-embed": last,
        "llama-embed-causal": last,
        "qwen3": last | {"cls.output.weight": (N_EMBD, 2)},
    }
    return ends.get(name, _bert_ends()) | layers


_RMS = {"attention.layer_norm_rms_epsilon": 1e-5}
_EVERY: dict[str, Any] = {
    "context_length": N_CTX,
    "embedding_length": N_EMBD,
    "block_count": N_LAYER,
    "feed_forward_length": N_FF,
    "attention.head_count": N_HEAD,
    "vocab_size": N_VOCAB,
    "attention.layer_norm_epsilon": 1e-5,
    "attention.causal": False,
}
_WINDOWED = {"attention.sliding_window": WINDOW, "rope.freq_base": 50000.0, "rope.freq_base_swa": 1000.0}
_GROUPED = _RMS | {"attention.head_count_kv": N_KV, "rope.dimension_count": HEAD}
KEYS: dict[str, dict[str, Any]] = {
    "bert": {"classifier.output_labels": ["a", "b", "c"], "pooling_type": 2},
    "bert-fused": {"pooling_type": 4},
    "nomic-bert": {"pooling_type": 1, "rope.freq_base": 1000.0},
    "nomic-bert-moe": {"moe_every_n_layers": 2, "expert_count": N_EXPERT, "expert_used_count": N_USED, "pooling_type": 1},
    "jina-bert-v2": {"pooling_type": 4},
    "jina-bert-v2-fused": {"pooling_type": 1},
    "jina-bert-v2-plain": {"pooling_type": 1},
    "jina-bert-v3": {"pooling_type": 1},
    "modern-bert": _WINDOWED | {"attention.sliding_window_pattern": 3},
    "modern-bert-deciding": _WINDOWED | {"attention.sliding_window_pattern": 3, "decision.block_count": 2,
        "feed_forward_length": [N_FF, N_FF, 80, 80]},
    "neo-bert": _GROUPED | {"classifier.output_labels": ["no", "yes"], "pooling_type": 2},
    "eurobert": _GROUPED | {"pooling_type": 1},
    "gemma-embedding": _GROUPED | _WINDOWED | {"attention.key_length": HEAD, "attention.value_length": HEAD,
        "dense_2_feat_in": N_EMBD, "dense_2_feat_out": 80, "dense_3_feat_in": 80, "dense_3_feat_out": N_EMBD,
        "pooling_type": 1, "attention.sliding_window_pattern": 2},
    "gemma-embedding2": _GROUPED | _WINDOWED | {"attention.key_length": HEAD, "attention.value_length": HEAD,
        "attention.key_length_swa": HEAD, "attention.value_length_swa": HEAD, "rope.dimension_count_swa": HEAD,
        "embedding_length_per_layer_input": 16, "embedding_length_out": 48, "pooling_type": 1,
        "attention.sliding_window_pattern": 2},
    "llama-embed": _GROUPED | {"pooling_type": 1},
    "llama-embed-causal": _GROUPED | {"pooling_type": 3, "attention.causal": True},
    "t5encoder": _RMS | {"attention.relative_buckets_count": N_BUCKETS, "pooling_type": 1},
    "t5encoder-gated": _RMS | {"attention.relative_buckets_count": N_BUCKETS, "pooling_type": 1, "attention.key_length": 24,
        "attention.value_length": 24},
    "qwen3": _GROUPED | {"attention.key_length": HEAD, "attention.value_length": HEAD, "pooling_type": 3,
        "classifier.output_labels": ["yes", "no"], "attention.causal": True},
}  # fmt: skip
"""By name: what stands under the architecture's keys beside _EVERY."""

NAMES = list(KEYS)


def architecture(name: str) -> str:
    return {"bert-fused": "bert", "llama-embed-causal": "llama-embed"}.get(
        name, name.removesuffix("-fused").removesuffix("-plain").removesuffix("-gated").removesuffix("-deciding")
    )


def ensure_encoders() -> Mapping[str, Path]:
    """The files, by name; a second when they are new."""

    def make(folder: Path) -> None:
        for name in NAMES:
            write(folder / f"{name}.gguf", name)

    folder = made(cache_dir("peer") / "encoders", Path(__file__).read_text(encoding="utf-8"), make)
    return {name: folder / f"{name}.gguf" for name in NAMES}


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"\u2581{c}" for c in "abcdefghijklmnopqrstuvwxyz.,?!")]
WORDS += [*"abcdefghijklmnopqrstuvwxyz", "\u2581cat", "\u2581dog", "ing", "er"]


def write_vocabulary(writer: gguf.GGUFWriter) -> None:
    """WordPiece, of letters and a few words."""
    tokens = [*WORDS, *(f"[unused{i}]" for i in range(N_VOCAB - len(WORDS)))]
    writer.add_tokenizer_model("bert")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token[0] == "[" else 1 for token in tokens])
    writer.add_unk_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_sep_token_id(3)
    writer.add_pad_token_id(0)


def write(path: Path, name: str, *, vocabulary: bool = False, metadata: Mapping[str, Any] | None = None) -> None:
    """`metadata`: further keys, whole."""
    arch = architecture(name)
    writer = gguf.GGUFWriter(path, arch)
    if vocabulary:
        write_vocabulary(writer)
    else:
        writer.add_tokenizer_model("no_vocab")
    for key, text in (metadata or {}).items():
        writer.add_string(key, text)
    writer.add_token_type_count(3 if name == "modern-bert-deciding" else N_TYPES)
    for key, value in (_EVERY | KEYS[name]).items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, list: writer.add_array}
        add[type(value)](f"{arch}.{key}", value)
    rng = np.random.default_rng(5)
    for tensor, ne in _tensors(name).items():
        writer.add_tensor(tensor, _values(rng, tensor, ne))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _values(rng: np.random.Generator, name: str, ne: Shape) -> np.ndarray:
    noise = rng.normal(0, 1, ne[::-1]).astype(np.float32)
    if name.endswith("layer_output_scale.weight"):
        return np.float32(0.9) + np.float32(0.1) * noise
    if name.endswith((".post_norm.weight", "attn_q_norm.weight")) and (ne == (HEAD,) or ".post_norm" in name):
        return np.float32(0.4) + np.float32(0.1) * noise
    if name.endswith("norm.weight") or name.endswith("norm_2.weight"):
        return 1 + np.float32(0.2) * noise
    if name.endswith(".bias") or name.startswith(("token_types", "position_embd")):
        return np.float32(0.2) * noise
    if name.startswith("enc.blk") and name.endswith(("attn_q.weight", "attn_k.weight")):  # scores have no scale
        return np.float32(0.75 / ne[0] ** 0.5) * noise
    if name.endswith(("attn_q.weight", "attn_k.weight", "attn_qkv.weight")):
        return np.float32(1.5 / ne[0] ** 0.5) * noise
    return np.float32(1.0 if name.startswith("token_embd") else 0.8 / ne[0] ** 0.5) * noise
