"""The files that are measured: SmolLM2 requantised by llama.cpp, and a 1.1B llama shape with random weights. Made once,
into the cache folder.
"""

import sys
from pathlib import Path

import gguf
import numpy as np

SUPPORT = Path(__file__).resolve().parent.parent / "tests" / "support"
sys.path.insert(0, str(SUPPORT))

from peer import Peer  # noqa: E402
from peer_build import ensure_smollm2  # noqa: E402

from pyggml.cachedir import cache_dir  # noqa: E402
from pyggml.dtypes import GGMLType, row_size  # noqa: E402
from pyggml.tokenizer.bpe import BYTE_CHARACTERS  # noqa: E402

SMOLLM2 = ("Q4_0", "Q4_1", "Q5_0", "Q8_0", "Q4_K_M", "Q6_K", "F16")
LLAMA_1B = ("Q4_0", "Q8_0", "Q4_K")
N_LAYER, N_EMBD, N_HEAD, N_HEAD_KV, N_FF, N_VOCAB = 22, 2048, 32, 4, 5632, 32000
PATTERN_ROWS = 64


def smollm2(peer: Peer, ftype: str) -> Path:
    source: Path = ensure_smollm2()
    return source if ftype == "Q4_1" else peer.quantize_model(source, None, ftype)


def llama_1b(peer: Peer, type_name: str) -> Path:
    """TinyLlama's shape; the output matrix is Q6_K beside 4-bit types, as llama.cpp chooses."""
    path = cache_dir("models") / f"llama-1.1B-random.{type_name}.gguf"
    if path.exists():
        return path
    dtype = GGMLType[type_name]
    output = GGMLType.Q8_0 if dtype == GGMLType.Q8_0 else GGMLType.Q6_K
    rng = np.random.default_rng(1)
    partial = path.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, "llama")
    for key, value in {
        "context_length": 8192,
        "embedding_length": N_EMBD,
        "block_count": N_LAYER,
        "feed_forward_length": N_FF,
        "attention.head_count": N_HEAD,
        "attention.head_count_kv": N_HEAD_KV,
        "rope.dimension_count": N_EMBD // N_HEAD,
        "vocab_size": N_VOCAB,
    }.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    characters = list(BYTE_CHARACTERS)
    writer.add_token_list([*characters, *(f"<{i}>" for i in range(len(characters), N_VOCAB))])
    writer.add_token_types([1] * N_VOCAB)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)

    def matrix(name: str, n_out: int, n_in: int, kind: GGMLType = dtype) -> None:
        """Rows of a pattern, in a random order: speed does not depend on what is in them."""
        rows = rng.normal(0, n_in**-0.5, (PATTERN_ROWS, n_in)).astype(np.float32)
        blocks = peer.ggml.quantize_chunk(kind, rows)
        assert blocks.shape == (PATTERN_ROWS, row_size(kind, n_in))
        order = rng.integers(0, PATTERN_ROWS, n_out)
        writer.add_tensor(f"{name}.weight", blocks[order], raw_dtype=gguf.GGMLQuantizationType[kind.name])

    def norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(N_EMBD, np.float32))

    n_kv = N_EMBD // N_HEAD * N_HEAD_KV
    matrix("token_embd", N_VOCAB, N_EMBD)
    norm("output_norm")
    matrix("output", N_VOCAB, N_EMBD, output)
    for layer in range(N_LAYER):
        at = f"blk.{layer}."
        norm(at + "attn_norm")
        norm(at + "ffn_norm")
        for name, n_out, n_in in (
            ("attn_q", N_EMBD, N_EMBD),
            ("attn_k", n_kv, N_EMBD),
            ("attn_v", n_kv, N_EMBD),
            ("attn_output", N_EMBD, N_EMBD),
            ("ffn_gate", N_FF, N_EMBD),
            ("ffn_up", N_FF, N_EMBD),
            ("ffn_down", N_EMBD, N_FF),
        ):
            matrix(at + name, n_out, n_in)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(path)
    return path
