"""Small LoRA adapters with random matrices, written with the `gguf` package."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

SHAPES = {  # of write_llama's matrices (n_in, n_out), as it makes them unless told otherwise
    "attn_q": (64, 64), "attn_k": (64, 32), "attn_v": (64, 32), "attn_output": (64, 64),
    "ffn_gate": (64, 96), "ffn_up": (64, 96), "ffn_down": (96, 64),
}  # fmt: skip
N_VOCAB, N_EMBD = 96, 64


def all_weights(n_layer: int = 2, n_expert: int = 0, output: bool = False) -> list[str]:
    """Every weight of such a model that an adapter can add to, without the token embeddings."""
    names = [name for name in SHAPES if not (n_expert and name.startswith("ffn"))]
    if n_expert:
        names += ["ffn_gate_inp", *(f"{name}_exps" for name in SHAPES if name.startswith("ffn"))]
    weights = [f"blk.{il}.{name}.weight" for il in range(n_layer) for name in names]
    return [*weights, "output.weight"] if output else weights


def matrices(
    weight: str, rank: int, rng: Any, n_expert: int = 0, shapes: Mapping[str, tuple[int, int]] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """A and B of a weight, as NumPy shapes (rows first). `shapes` are those that differ from SHAPES."""
    name = weight.removesuffix(".weight").rpartition(".")[2]
    if name == "token_embd":
        n_a, n_b = (N_VOCAB, rank), (N_EMBD, rank)
    else:
        n_in, n_out = {"output": (N_EMBD, N_VOCAB), "ffn_gate_inp": (N_EMBD, n_expert)}.get(
            name, (SHAPES | dict(shapes or {})).get(name.removesuffix("_exps"), (0, 0))
        )
        experts = (n_expert,) if name.endswith("_exps") else ()
        n_a, n_b = (*experts, rank, n_in), (*experts, n_out, rank)
    return tuple(rng.normal(0, n[-1] ** -0.5, n).astype(np.float32) for n in (n_a, n_b))  # type: ignore[return-value]


def write_lora(
    path: Path,
    weights: Sequence[str],
    *,
    rank: int = 4,
    alpha: float | None = 6.0,
    n_expert: int = 0,
    shapes: Mapping[str, tuple[int, int]] | None = None,
    quant: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    strings: Mapping[str, str | None] | None = None,
    more: Mapping[str, np.ndarray] | None = None,
    leave_out: Sequence[str] = (),
    invocation: Sequence[int] | None = None,
    seed: int = 5,
) -> Path:
    """`strings` replace what the metadata say (None: nothing), `more` and `leave_out` name tensors."""
    rng = np.random.default_rng(seed)
    keys = {"general.type": "adapter", "general.architecture": "llama", "adapter.type": "lora", **(strings or {})}
    writer = gguf.GGUFWriter(path, keys["general.architecture"] or "")
    if keys.pop("general.architecture") is None:
        writer.kv_data[0].pop("general.architecture")
    for key, value in keys.items():
        if value is not None:
            writer.add_string(key, value)
    if alpha is not None:
        writer.add_float32("adapter.lora.alpha", alpha)
    if invocation is not None:
        kinds = gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT32
        writer.add_key_value("adapter.alora.invocation_tokens", list(invocation), *kinds)
    tensors: dict[str, np.ndarray] = {}
    for weight in weights:
        a, b = matrices(weight, rank, rng, n_expert, shapes)
        tensors |= {f"{weight}.lora_a": a, f"{weight}.lora_b": b}
    for name, value in (tensors | dict(more or {})).items():
        if name in leave_out:
            continue
        if quant != gguf.GGMLQuantizationType.F32:
            writer.add_tensor(name, gguf.quants.quantize(value, quant), raw_dtype=quant)
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
