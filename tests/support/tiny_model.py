"""Small llama models with random weights, written with the `gguf` package."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

N_VOCAB = 96


def write_llama(
    path: Path,
    *,
    n_layer: int = 2,
    n_embd: int = 64,
    n_head: int = 4,
    n_head_kv: int = 2,
    head_k: int = 16,
    head_v: int = 16,
    n_ff: int = 96,
    n_ctx: int = 1024,
    tied: bool = True,
    biases: bool = False,
    rope_freqs: bool = False,
    long_factors: bool = False,
    n_expert: int = 0,
    n_expert_used: int = 2,
    quant: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    floats: Mapping[str, float] | None = None,
    strings: Mapping[str, str] | None = None,
    ints: Mapping[str, int] | None = None,
    leave_out: tuple[str, ...] = (),
    replace: Mapping[str, np.ndarray] | None = None,
    arch: str = "llama",
    tokenizer: str = "gpt2",
    seed: int = 1,
) -> Path:
    """`floats`, `strings` and `ints` are further keys (they win over those made here); `leave_out` and `replace`
    name tensors or keys. A `tokenizer` other than gpt2 and test has no vocabulary."""
    rng = np.random.default_rng(seed)
    values: dict[str, Any] = {
        f"{arch}.context_length": n_ctx,
        f"{arch}.embedding_length": n_embd,
        f"{arch}.block_count": n_layer,
        f"{arch}.feed_forward_length": n_ff,
        f"{arch}.attention.head_count": n_head,
        f"{arch}.attention.head_count_kv": n_head_kv,
        f"{arch}.attention.key_length": head_k,
        f"{arch}.attention.value_length": head_v,
        f"{arch}.rope.dimension_count": head_k,
        f"{arch}.vocab_size": N_VOCAB,
        f"{arch}.attention.layer_norm_rms_epsilon": 1e-5,
    }
    if n_expert:
        values |= {f"{arch}.expert_count": n_expert, f"{arch}.expert_used_count": n_expert_used}
    values |= {**(floats or {}), **(strings or {}), **(ints or {})}
    writer = gguf.GGUFWriter(path, arch)
    for key, value in values.items():
        if key not in leave_out:
            add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)]
            add(key, value)
    writer.add_tokenizer_model(tokenizer)
    if tokenizer in ("gpt2", "test"):
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list([f"<{i}>" for i in range(N_VOCAB)])
        writer.add_token_types([1] * N_VOCAB)
        writer.add_token_merges(["a b"])
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(1)

    tensors: dict[str, np.ndarray] = {}

    def matrix(name: str, n_out: int, n_in: int) -> None:
        tensors[name + ".weight"] = rng.normal(0, n_in**-0.5, (n_out, n_in)).astype(np.float32)
        if biases and name.startswith("blk."):
            tensors[name + ".bias"] = rng.normal(0, 0.3, n_out).astype(np.float32)

    def matrices(name: str, n_out: int, n_in: int) -> None:
        tensors[name + ".weight"] = rng.normal(0, n_in**-0.5, (n_expert, n_out, n_in)).astype(np.float32)

    def norm(name: str) -> None:
        tensors[name + ".weight"] = rng.uniform(0.5, 1.5, n_embd).astype(np.float32)

    matrix("token_embd", N_VOCAB, n_embd)
    norm("output_norm")
    if not tied:
        matrix("output", N_VOCAB, n_embd)
    if rope_freqs:
        tensors["rope_freqs.weight"] = rng.uniform(1, 8, head_k // 2).astype(np.float32)
    if long_factors:
        tensors["rope_factors_long.weight"] = rng.uniform(4, 16, head_k // 2).astype(np.float32)
        tensors["rope_factors_short.weight"] = rng.uniform(1, 2, head_k // 2).astype(np.float32)
    for il in range(n_layer):
        norm(f"blk.{il}.attn_norm")
        norm(f"blk.{il}.ffn_norm")
        matrix(f"blk.{il}.attn_q", n_head * head_k, n_embd)
        matrix(f"blk.{il}.attn_k", n_head_kv * head_k, n_embd)
        matrix(f"blk.{il}.attn_v", n_head_kv * head_v, n_embd)
        matrix(f"blk.{il}.attn_output", n_embd, n_head * head_v)
        if n_expert:
            tensors[f"blk.{il}.ffn_gate_inp.weight"] = rng.normal(0, 1, (n_expert, n_embd)).astype(np.float32)
            matrices(f"blk.{il}.ffn_gate_exps", n_ff, n_embd)
            matrices(f"blk.{il}.ffn_up_exps", n_ff, n_embd)
            matrices(f"blk.{il}.ffn_down_exps", n_embd, n_ff)
            continue
        matrix(f"blk.{il}.ffn_gate", n_ff, n_embd)
        matrix(f"blk.{il}.ffn_up", n_ff, n_embd)
        matrix(f"blk.{il}.ffn_down", n_embd, n_ff)
    for name, value in (tensors | dict(replace or {})).items():
        if name in leave_out:
            continue
        if value.ndim >= 2 and "ffn_gate_inp" not in name and quant != gguf.GGMLQuantizationType.F32:
            writer.add_tensor(name, gguf.quants.quantize(value, quant), raw_dtype=quant)
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
