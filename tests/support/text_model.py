"""A llama model of two layers with random weights whose vocabulary can spell any text: a token for each byte."""

from pathlib import Path

import gguf
import numpy as np

N_EMBD, N_FF, N_HEAD, N_HEAD_KV, N_LAYER = 64, 96, 4, 2, 2
WORDS = ["he", "ll", "hell", "hello", "Ġw", "or", "Ġwor", "ld", "Ġworld"]
EOT, BOS = 256 + len(WORDS), 257 + len(WORDS)
N_VOCAB = BOS + 1


def byte_characters() -> list[str]:
    """The character that stands for each byte in a GPT-2 vocabulary."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in plain]
    return [chr(b) if b in plain else chr(256 + rest.index(b)) for b in range(256)]


def write_text_model(
    path: Path,
    n_ctx: int = 64,
    add_bos: bool = False,
    fim: bool = False,
    seed: int = 5,
    template: str | None = None,
    arch: str = "llama",
    leave_out: tuple[str, ...] = (),
    split: int = 0,
    bos: str = "<|begin|>",
) -> Path:
    """Tokens 0 to 255 are the bytes, then WORDS, then "<|end|>" (the EOS) and `bos`.

    With `fim` bytes 1, 2 and 3 are said to be the marks for filling in the middle; `template` is the chat template;
    `arch` the architecture, whose file lacks the tensors of `leave_out`; of `split` tensors each are the files of a split one.
    """
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, arch, split_max_tensors=split)
    writer.add_name("text")
    writer.add_context_length(n_ctx)
    writer.add_embedding_length(N_EMBD)
    writer.add_block_count(N_LAYER)
    writer.add_feed_forward_length(N_FF)
    writer.add_head_count(N_HEAD)
    writer.add_head_count_kv(N_HEAD_KV)
    writer.add_rope_dimension_count(N_EMBD // N_HEAD)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(N_VOCAB)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*byte_characters(), *WORDS, "<|end|>", bos])
    writer.add_token_types([1] * (256 + len(WORDS)) + [3, 3])
    writer.add_token_merges(["h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or", "l d", "Ġwor ld"])
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOT)
    writer.add_add_bos_token(add_bos)
    if template is not None:
        writer.add_chat_template(template)
    if fim:
        for i, name in enumerate(("fim_pre", "fim_suf", "fim_mid")):
            writer.add_uint32(f"tokenizer.ggml.{name}_token_id", i + 1)

    def matrix(name: str, n_out: int, n_in: int, scale: float = 1.0) -> None:
        weight = rng.normal(0, scale * n_in**-0.5, (n_out, n_in))
        if f"{name}.weight" in leave_out:
            return
        writer.add_tensor(name + ".weight", weight.astype(np.float32))

    def norm(name: str) -> None:
        writer.add_tensor(name + ".weight", np.ones(N_EMBD, np.float32))

    matrix("token_embd", N_VOCAB, N_EMBD, 4.0)
    matrix("output", N_VOCAB, N_EMBD, 2.0)
    norm("output_norm")
    kv = N_EMBD // N_HEAD * N_HEAD_KV
    for layer in range(N_LAYER):
        norm(f"blk.{layer}.attn_norm")
        norm(f"blk.{layer}.ffn_norm")
        shapes = {"attn_q": (N_EMBD, N_EMBD), "attn_k": (kv, N_EMBD), "attn_v": (kv, N_EMBD)}
        shapes |= {"attn_output": (N_EMBD, N_EMBD), "ffn_gate": (N_FF, N_EMBD), "ffn_up": (N_FF, N_EMBD)}
        for name, (n_out, n_in) in (shapes | {"ffn_down": (N_EMBD, N_FF)}).items():
            matrix(f"blk.{layer}.{name}", n_out, n_in)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
