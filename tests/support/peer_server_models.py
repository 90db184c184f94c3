"""The models that llama-server's own tests ask for, in the shapes of those but with random weights: F32, a fixed seed.

Owns their vocabularies and weights, and under which name of a repository and a file a test finds each. What a model of random
weights says is not what the tests expect of the real ones: peer_server_answers.py puts llama-server's own answers there.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import gguf
import numpy as np
from made_folders import made

from pyggml.cachedir import cache_dir

SPACE = "\u2581"


def _words(text: str) -> list[str]:
    return text.split()


PIECES = _words("""
    el lo he in th er an on re at ou en is or it ing ed es the al ar nd st to le ve ion ll me be of as hat om us
    oo ow ay ri un ic ent ut ch li el ro ra ur la ta ce im ame ore am qu ol em et ig il ir ad id ain ick ess ea
    ter now our aid ight pe ot op os ver wh ke lo ere sa bo do ma so go po no co fi si di ne se te de ti ni mi pl
    bl gr pr tr cr dr br fr sp
""")
WORDS = _words("""
    a the of to and in is it I he she we you was his her but so be they an H b c d f g h k l m n o p r s t w y be
    wh th st re to on S T W A B said one good day little big very had not as my for with what life write
""")
FOX = _words("""
    The quick brown fox jumps over lazy dog. first ending this story happy one. But second was different sad.
""")
HELLO = [f"{SPACE}{'Hello'[:n]}" for n in range(5, 0, -1)]
N_VOCAB = 512
BERT_WORDS = _words("""
    [PAD] [UNK] [CLS] [SEP] i believe the meaning of life is this a test another machine learning which city
    hello world write joke about ai from very long prompt will not be truncated base embedding output string
    paris capitale de la france , ? . - ; goodbye and field study in it
""")


def spm(more: Sequence[str] = (), n_vocab: int = N_VOCAB) -> tuple[list[str], list[float], list[int]]:
    """Pieces, scores and types of a SentencePiece vocabulary: bytes, letters, frequent pairs and words."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    kinds = [2, 3, 3, *[6] * 256]
    letters = [chr(c) for c in range(0x20, 0x7F) if c != 0x20]
    pieces = [*more, *(SPACE + word for word in WORDS), *PIECES]
    made = list(dict.fromkeys(piece for piece in [*pieces, SPACE, *letters] if piece))
    # a piece of three or more characters needs parts that are pieces too: every beginning of it is one
    for piece in list(made):
        made += [piece[:n] for n in range(2, len(piece)) if piece[:n] not in made]
    made = list(dict.fromkeys(made))
    room = n_vocab - len(tokens)
    short = [piece for piece in made if len(piece) == 1]
    rest = [piece for piece in made if len(piece) > 1]
    assert len(short) < room, (len(short), room)
    made = [*rest[: room - len(short)], *short]
    made += [f"<extra{i}>" for i in range(room - len(made))]
    return [*tokens, *made], [0.0] * len(tokens) + [-float(i) for i in range(len(made))], [*kinds, *[1] * len(made)]


class _Model:
    """A file in the making: metadata under the architecture's name, matrices of one random stream."""

    def __init__(self, path: Path, arch: str, seed: int) -> None:
        self.path, self.arch = path, arch
        self.rng = np.random.default_rng(seed)
        self.writer = gguf.GGUFWriter(path, arch)
        self.writer.add_name(path.stem)

    def keys(self, **values: bool | int | float) -> None:
        for key, value in values.items():
            name = f"{self.arch}.{key.replace('__', '.')}"
            add = {bool: self.writer.add_bool, int: self.writer.add_uint32, float: self.writer.add_float32}
            add[type(value)](name, value)

    def output(self, n_vocab: int, n_embd: int, scale: float) -> None:
        """Rows for bytes and marks are small: the model speaks in pieces, which are characters."""
        value = self.rng.normal(0, scale * n_embd**-0.5, (n_vocab, n_embd))
        value[: 3 + 256] *= 0.02
        self.writer.add_tensor("output.weight", value.astype(np.float32))

    def spm(self, more: Sequence[str] = (), n_vocab: int = N_VOCAB, fim: bool = False) -> None:
        tokens, scores, kinds = spm(more, n_vocab)
        writer = self.writer
        writer.add_tokenizer_model("llama")
        writer.add_token_list(tokens)
        writer.add_token_scores(scores)
        writer.add_token_types(kinds)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)
        if fim:
            for i, name in enumerate(("fim_pre", "fim_suf", "fim_mid")):
                writer.add_uint32(f"tokenizer.ggml.{name}_token_id", 4 + i)

    def matrix(self, name: str, *shape: int, scale: float = 1.0) -> None:
        """NumPy's order: rows first."""
        value = self.rng.normal(0, scale * shape[-1] ** -0.5, shape)
        self.writer.add_tensor(f"{name}.weight", value.astype(np.float32))

    def norm(self, name: str, n: int, bias: bool = False) -> None:
        self.writer.add_tensor(f"{name}.weight", (1 + 0.1 * self.rng.normal(0, 1, n)).astype(np.float32))
        if bias:
            self.bias(name, n)

    def bias(self, name: str, n: int) -> None:
        self.writer.add_tensor(f"{name}.bias", (0.1 * self.rng.normal(0, 1, n)).astype(np.float32))

    def linear(self, name: str, n_out: int, n_in: int) -> None:
        self.matrix(name, n_out, n_in)
        self.bias(name, n_out)

    def close(self) -> None:
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()


def _llama(path: Path, seed: int, n_embd: int, n_layer: int, n_head: int, n_kv: int, n_ff: int, *, n_expert: int = 0,
           fim: bool = False, n_ctx: int = 2048, split: int = 0, words: Sequence[str] = ()) -> None:  # fmt: skip
    model = _Model(path, "llama", seed)
    if split:
        model.writer = gguf.GGUFWriter(path, "llama", split_max_tensors=split)
    model.keys(context_length=n_ctx, embedding_length=n_embd, block_count=n_layer, feed_forward_length=n_ff,
               attention__head_count=n_head, attention__head_count_kv=n_kv, rope__dimension_count=n_embd // n_head,
               attention__layer_norm_rms_epsilon=1e-5, vocab_size=N_VOCAB)  # fmt: skip
    if n_expert:
        model.keys(expert_count=n_expert, expert_used_count=2)
    model.spm(words, fim=fim)
    model.matrix("token_embd", N_VOCAB, n_embd, scale=4.0)
    model.output(N_VOCAB, n_embd, 2.5)
    model.norm("output_norm", n_embd)
    for il in range(n_layer):
        b, kv = f"blk.{il}", n_embd // n_head * n_kv
        model.norm(f"{b}.attn_norm", n_embd)
        model.norm(f"{b}.ffn_norm", n_embd)
        for name, rows in (("attn_q", n_embd), ("attn_k", kv), ("attn_v", kv), ("attn_output", n_embd)):
            model.matrix(f"{b}.{name}", rows, n_embd)
        if n_expert:
            model.matrix(f"{b}.ffn_gate_inp", n_expert, n_embd)
        for name, shape in (("gate", (n_ff, n_embd)), ("up", (n_ff, n_embd)), ("down", (n_embd, n_ff))):
            experts = (n_expert,) if n_expert else ()
            model.matrix(f"{b}.ffn_{name}{'_exps' if n_expert else ''}", *experts, *shape)
    model.close()


def _gemma3(
    path: Path, n_vocab: int = 640, n_embd: int = 64, n_layer: int = 6, n_head: int = 2, n_ff: int = 128
) -> None:
    model = _Model(path, "gemma3", 11)
    head = 32
    model.keys(context_length=4096, embedding_length=n_embd, block_count=n_layer, feed_forward_length=n_ff,
               attention__head_count=n_head, attention__head_count_kv=1, attention__key_length=head,
               attention__value_length=head, attention__layer_norm_rms_epsilon=1e-6, attention__sliding_window=32,
               rope__freq_base=1e6, vocab_size=n_vocab)  # fmt: skip
    model.spm([SPACE + word for word in FOX], n_vocab)
    model.matrix("token_embd", n_vocab, n_embd, scale=2.0)
    model.output(n_vocab, n_embd, 2.0)
    model.norm("output_norm", n_embd)
    for il in range(n_layer):
        b = f"blk.{il}"
        for name in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"):
            model.norm(f"{b}.{name}", n_embd)
        for name in ("attn_q_norm", "attn_k_norm"):
            model.norm(f"{b}.{name}", head)
        for name, rows, columns in (
            ("attn_q", n_head * head, n_embd), ("attn_k", head, n_embd), ("attn_v", head, n_embd),
            ("attn_output", n_embd, n_head * head), ("ffn_gate", n_ff, n_embd), ("ffn_up", n_ff, n_embd),
            ("ffn_down", n_embd, n_ff),
        ):  # fmt: skip
            model.matrix(f"{b}.{name}", rows, columns)
    model.close()


def _bert(path: Path, seed: int, ranks: bool, n_embd: int = 64, n_layer: int = 2, n_ff: int = 128) -> None:
    model = _Model(path, "bert", seed)
    model.keys(context_length=512, embedding_length=n_embd, block_count=n_layer, feed_forward_length=n_ff,
               attention__head_count=4, attention__layer_norm_epsilon=1e-12, attention__causal=False,
               pooling_type=4 if ranks else 2)  # fmt: skip
    words = [word if word.startswith("[") else SPACE + word for word in BERT_WORDS]
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    tokens = list(dict.fromkeys([*words, *(SPACE + c for c in letters), *letters, "ing", "er", "s"]))
    writer = model.writer
    writer.add_tokenizer_model("bert")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("[") else 1 for token in tokens])
    writer.add_token_type_count(2)
    for name, number in (
        ("padding", 0),
        ("unknown", 1),
        ("cls", 2),
        ("bos", 2),
        ("eos", 3),
        ("seperator", 3),
        ("mask", 1),
    ):
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", number)
    writer.add_add_eos_token(True)
    writer.add_add_sep_token(False)
    model.matrix("token_embd", len(tokens), n_embd, scale=4.0)
    model.matrix("position_embd", 512, n_embd)
    model.matrix("token_types", 2, n_embd)
    model.norm("token_embd_norm", n_embd, bias=True)
    for il in range(n_layer):
        b = f"blk.{il}"
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            model.linear(f"{b}.{name}", n_embd, n_embd)
        model.norm(f"{b}.attn_output_norm", n_embd, bias=True)
        model.linear(f"{b}.ffn_up", n_ff, n_embd)
        model.linear(f"{b}.ffn_down", n_embd, n_ff)
        model.norm(f"{b}.layer_output_norm", n_embd, bias=True)
    if ranks:
        model.linear("cls", n_embd, n_embd)
        model.linear("cls.output", 1, n_embd)
    model.close()


def _lora(path: Path, n_embd: int, n_layer: int, rank: int = 4) -> None:
    rng = np.random.default_rng(3)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 8.0)
    for il in range(n_layer):
        for name in ("attn_q", "attn_output"):
            for letter, shape in (("a", (rank, n_embd)), ("b", (n_embd, rank))):
                value = rng.normal(0, shape[-1] ** -0.5, shape).astype(np.float32)
                writer.add_tensor(f"blk.{il}.{name}.weight.lora_{letter}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write(folder: Path) -> None:
    _llama(folder / "stories260K.gguf", 1, 64, 5, 8, 4, 172)
    _llama(folder / "stories260K-infill.gguf", 2, 64, 5, 8, 4, 172, fim=True, n_ctx=4096)
    _llama(folder / "stories15M_MOE.gguf", 3, 96, 3, 6, 6, 128, n_expert=4, words=HELLO)
    _llama(folder / "stories15M-q4_0.gguf", 4, 64, 2, 4, 4, 96, words=HELLO)
    _llama(folder / "stories15M-q8_0.gguf", 5, 96, 3, 6, 6, 256, split=12)
    _gemma3(folder / "tinygemma3.gguf")
    _bert(folder / "bert-bge-small.gguf", 6, ranks=False)
    _bert(folder / "jina-reranker.gguf", 7, ranks=True)
    _lora(folder / "moe_shakespeare15M.gguf", 96, 3)


FILES: Mapping[tuple[str, str], str] = {
    ("ggml-org/test-model-stories260K", ""): "stories260K.gguf",
    ("ggml-org/test-model-stories260K-infill", ""): "stories260K-infill.gguf",
    ("ggml-org/models", "tinyllamas/stories260K.gguf"): "stories260K.gguf",
    ("ggml-org/models", "tinyllamas/split/stories15M-q8_0-00001-of-00003.gguf"): "stories15M-q8_0-00001-of-00003.gguf",
    ("ggml-org/models", "bert-bge-small/ggml-model-f16.gguf"): "bert-bge-small.gguf",
    ("ggml-org/models", "jina-reranker-v1-tiny-en/ggml-model-f16.gguf"): "jina-reranker.gguf",
    ("ggml-org/stories15M_MOE", "stories15M_MOE-F16.gguf"): "stories15M_MOE.gguf",
    ("ggml-org/tinygemma3-GGUF:Q8_0", ""): "tinygemma3.gguf",
}
"""(repository, file in it) -> our file."""

DOWNLOADS = ("stories15M-q4_0.gguf", "moe_shakespeare15M.gguf")
"""Files that tests fetch by an address that ends in this name."""


def ensure_models() -> Path:
    """The folder with all files; a second when they are new."""
    return made(cache_dir("peer") / "server-models", Path(__file__).read_text(encoding="utf-8"), _write)
