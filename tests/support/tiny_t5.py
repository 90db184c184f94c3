"""Tiny random T5 models with both halves, F32 all: the reference's test-llama-archs writes none.

Owns their keys, shapes and vocabulary, after models/t5.cpp; must not know how we compute them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from made_folders import made

from pyggml.cachedir import cache_dir

N_EMBD, N_HEAD, N_FF, N_LAYER, N_BUCKETS, N_CTX = 64, 4, 96, 4, 12, 256
PAD, EOS, UNK = range(3)
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = [
    "<pad>",
    "</s>",
    "<unk>",
    "\u2581",
    *LETTERS,
    *(f"\u2581{c}" for c in LETTERS),
    ".",
    ",",
    "\u2581the",
    "ing",
    "er",
]
N_VOCAB = 64  # three are <extra_id_N>
Shape = tuple[int, ...]

NAMES = {"t5": (16, N_LAYER), "t5-gated": (24, N_LAYER - 1)}
"""By name: the size of a head, layers of the decoder."""


def _layer(b: str, head: int, *, biased: bool, gated: bool) -> dict[str, Shape]:
    wide = head * N_HEAD
    found: dict[str, Shape] = {f"{b}{norm}.weight": (N_EMBD,) for norm in ("attn_norm", "ffn_norm")}
    found |= {f"{b}attn_{c}.weight": (wide, N_EMBD) for c in "qkv"} | {f"{b}attn_o.weight": (N_EMBD, wide)}
    found |= {f"{b}ffn_up.weight": (N_FF, N_EMBD), f"{b}ffn_down.weight": (N_EMBD, N_FF)}
    if gated:
        found[f"{b}ffn_gate.weight"] = (N_FF, N_EMBD)
    if biased:
        found[f"{b}attn_rel_b.weight"] = (N_BUCKETS, N_HEAD)
    if b.startswith("dec"):
        found[f"{b}cross_attn_norm.weight"] = (N_EMBD,)
        found |= {f"{b}cross_attn_{c}.weight": (wide, N_EMBD) for c in "qkv"}
        found[f"{b}cross_attn_o.weight"] = (N_EMBD, wide)
        if biased:
            found[f"{b}cross_attn_rel_b.weight"] = (N_BUCKETS, N_HEAD)
    return found


def _tensors(name: str) -> dict[str, Shape]:
    """Outermost first."""
    (head, n_dec), gated = NAMES[name], name == "t5-gated"
    found: dict[str, Shape] = {"token_embd.weight": (N_VOCAB, N_EMBD)}
    found |= {f"{half}.output_norm.weight": (N_EMBD,) for half in ("enc", "dec")}
    if gated:
        found["output.weight"] = (N_VOCAB, N_EMBD)
    for half, n in (("enc", N_LAYER), ("dec", n_dec)):
        for il in range(n):
            biased = not il or (gated and il == 2)
            found |= _layer(f"{half}.blk.{il}.", head, biased=biased, gated=gated)
    return found


def _values(rng: np.random.Generator, name: str, shape: Shape) -> np.ndarray:
    noise = rng.normal(0, 1, shape).astype(np.float32)
    if name.endswith("norm.weight"):
        return 1 + np.float32(0.2) * noise
    if name.endswith("rel_b.weight") or name == "token_embd.weight":
        return noise
    scale = 0.75 if name.endswith(("attn_q.weight", "attn_k.weight")) else 0.8  # scores have no scale
    return np.float32(scale / shape[-1] ** 0.5) * noise


def write(path: Path, name: str) -> None:
    writer = gguf.GGUFWriter(path, "t5")
    (head, n_dec), arch = NAMES[name], "t5"
    keys: dict[str, Any] = {
        "context_length": N_CTX, "embedding_length": N_EMBD, "block_count": N_LAYER, "feed_forward_length": N_FF,
        "attention.head_count": N_HEAD, "attention.key_length": head, "attention.value_length": head,
        "attention.relative_buckets_count": N_BUCKETS, "decoder_start_token_id": PAD,
    }  # fmt: skip
    if n_dec != N_LAYER:
        keys["decoder_block_count"] = n_dec
    for key, value in keys.items():
        writer.add_uint32(f"{arch}.{key}", value)
    writer.add_float32(f"{arch}.attention.layer_norm_rms_epsilon", 1e-6)
    writer.add_tokenizer_model("t5")
    tokens = [*WORDS, *(f"<extra_id_{i}>" for i in range(N_VOCAB - len(WORDS)))]
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0 if i < 3 else -2.0 - 0.01 * i for i in range(N_VOCAB)])
    kinds = {"<pad>": 3, "</s>": 3, "<unk>": 2}
    writer.add_token_types([kinds.get(token, 3 if token[0] == "<" else 1) for token in tokens])
    writer.add_pad_token_id(PAD)
    writer.add_eos_token_id(EOS)
    writer.add_unk_token_id(UNK)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(True)
    writer.add_add_space_prefix(True)
    rng = np.random.default_rng(5)
    for tensor, shape in _tensors(name).items():
        writer.add_tensor(tensor, _values(rng, tensor, shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def ensure_t5() -> Mapping[str, Path]:
    """The files, by name."""

    def make(folder: Path) -> None:
        for name in NAMES:
            write(folder / f"{name}.gguf", name)

    folder = made(cache_dir("peer") / "t5", Path(__file__).read_text(encoding="utf-8"), make)
    return {name: folder / f"{name}.gguf" for name in NAMES}
