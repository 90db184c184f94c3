"""What the tests of all kinds of tokenizer share: texts to try, and the stock library's answers."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

from hypothesis import strategies as st
from kept import Answers, file_digest
from peer import Peer

from pyggml.gguf import GGUFFile
from pyggml.tokenizer import Tokenizer

# Blocks rather than all of Unicode: the two regex libraries know different versions of it, which shows in code points
# that were assigned lately.
BLOCKS = [
    *[(0x20, 0x7E)] * 4,
    (0x00, 0x1F),
    (0x7F, 0x17F),
    (0x300, 0x36F),
    (0x370, 0x52F),
    (0x5D0, 0x5EA),
    (0x600, 0x6FF),
    (0x900, 0x97F),
    (0xE00, 0xE5B),
    (0x10A0, 0x10FF),
    (0x1F00, 0x1FFE),
    (0x2000, 0x206F),
    (0x2070, 0x20BF),
    (0x2100, 0x218F),
    (0x2190, 0x23FF),
    (0x2460, 0x26FF),
    (0x3000, 0x30FF),
    (0x4E00, 0x4EFF),
    (0x9F80, 0x9FFF),
    (0xAC00, 0xACFF),
    (0xE000, 0xE010),
    (0xFE00, 0xFE0F),
    (0xFF00, 0xFFEF),
    (0x10400, 0x1044F),
    (0x1D400, 0x1D7FF),
    (0x1F300, 0x1F64F),
]
CHARACTERS = st.sampled_from(BLOCKS).flatmap(lambda b: st.integers(*b)).map(chr)
WORDS = [
    "'s",
    "'LL",
    "'Re",
    " ",
    "  ",
    "\n",
    "\r\n",
    "\n\n",
    "\t",
    "123",
    "4567",
    "don't",
    "\u3000",
    "\u00a0",
    "\u0085",
]
WORDS += [
    "Hello",
    " world",
    "été",
    "日本語",
    "한국어",
    "🦙",
    "👩\u200d👩\u200d👧",
    "ₓ",
    "½",
    "٣٤",
    "$+<=>^~|`",
    "...",
    " !",
]
WORDS += ["a\u0301", "ſ", "-", "(", "e", "B", "9"]
CUTS = ["aB", "Ab", "ABc", "XyZ", "É", "ñA", "IMGIMG", "ABCZ", "IMGIMGABCDEZ", "<sentinel:12>", "    ", "   ", 9 * " "]
CUTS += [
    70 * " ",
    '"abc',
    "[x",
    "\\y",
    "/",
    "//\n",
    " \n \n",
    "1234567",
    "12345",
    "٣",
    "٣123",
    "123٣456",
    "।",
    "،",
    "。",
]
CUTS += [
    "！",
    "（",
    "ㄱ",
    "ㄅ",
    "가",
    "ภา",
    "က",
    "ᄀ",
    "a b c d",
    "é e",
    "\u0301",
    "ǅ",
    "ʰ",
    "_",
    "$",
    "\u2028",
    "'LLx",
]
"""What some of the patterns tell apart from other text."""
BITS = st.sampled_from(WORDS)
TEXT = st.lists(st.one_of(BITS, BITS, CHARACTERS), max_size=12).map("".join)


def load(path: Path) -> Tokenizer:
    with GGUFFile.open(path) as f:
        return Tokenizer.from_metadata(f.metadata)


# The stock library: a process that answers one JSON line with another, so that hypothesis can shrink what differs

STOCK = """
import ctypes, hashlib, json, sys
import llama_cpp as lc
quiet = lc.llama_log_callback(lambda *a: None)
lc.llama_log_set(quiet, None)
vocabs, models = {}, []

def vocab(path):
    if path not in vocabs:
        p = lc.llama_model_default_params()
        p.vocab_only = True
        models.append(lc.llama_model_load_from_file(path.encode(), p))
        vocabs[path] = lc.llama_model_get_vocab(models[-1])
    return vocabs[path]

def tokenize(path, text, add_special, parse_special):
    raw = text.encode()
    ids = (ctypes.c_int32 * (len(raw) + 8))()
    n = lc.llama_tokenize(vocab(path), raw, len(raw), ids, len(ids), add_special, parse_special)
    assert n >= 0
    return ids[:n]

def tokenize_all(path, texts, add_special, parse_special):
    return [tokenize(path, text, add_special, parse_special) for text in texts]

def describe(path):
    v = vocab(path)
    n = lc.llama_vocab_n_tokens(v)
    buf = ctypes.create_string_buffer(4096)
    pieces = []
    for special in (True, False):
        h = hashlib.sha256()
        for i in range(n):
            size = lc.llama_token_to_piece(v, i, buf, 4096, 0, special)
            h.update(size.to_bytes(4, "little") + buf.raw[:size])
        pieces.append(h.hexdigest())
    return {
        "n": n, "bos": lc.llama_vocab_bos(v), "eos": lc.llama_vocab_eos(v),
        "sep": lc.llama_vocab_sep(v), "pad": lc.llama_vocab_pad(v), "nl": lc.llama_vocab_nl(v),
        "add": [lc.llama_vocab_get_add_bos(v), lc.llama_vocab_get_add_eos(v), lc.llama_vocab_get_add_sep(v)],
        "eog": [i for i in range(n) if lc.llama_vocab_is_eog(v, i)],
        "control": [i for i in range(n) if lc.llama_vocab_is_control(v, i)],
        "pieces": pieces,
    }

for line in sys.stdin:
    function, *args = json.loads(line)
    print(json.dumps(globals()[function](*args)), flush=True)
"""


class Stock:
    """The stock library, asked ("tokenize", path, text, add_special, parse_special) and the like. What it has answered to a
    run of `test` before it is not asked again; its process starts with the first question that is new. Ends with a `with`."""

    def __init__(self, peer: Peer, test: str) -> None:
        command = [sys.executable, "-c", STOCK]
        self._begin(command, peer.env, Path(test).stem, f"{peer.site.parent.name} {STOCK}")

    def _begin(self, command: list[str], env: dict[str, str] | None, name: str, depends: str) -> None:
        self._command, self._env = command, env
        self._answers = Answers(name, depends, "peer", "answers")
        self._started: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._answers.write()
        if self._started is not None:
            with self._started as process:
                assert process.stdin
                process.stdin.close()

    @property
    def process(self) -> "subprocess.Popen[str]":
        if self._started is None:
            pipe, null = subprocess.PIPE, subprocess.DEVNULL
            self._started = subprocess.Popen(
                self._command, stdin=pipe, stdout=pipe, stderr=null, text=True, env=self._env
            )
        return self._started

    def __call__(self, function: str, path: Path, *args: Any) -> Any:
        question = json.dumps([function, file_digest(path), *args])
        return self._answers.get(question, lambda: self._ask(function, path, *args))

    def _ask(self, function: str, path: Path, *args: Any) -> Any:
        return json.loads(self._line(json.dumps([function, str(path), *args])))

    def _line(self, line: str) -> str:
        process = self.process
        assert process.stdin and process.stdout
        process.stdin.write(line + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        assert answer.endswith("\n"), f"the process ended: {process.wait(10)}"
        return answer


class NewestStock(Stock):
    """llama.cpp of protocol 8.0.0."""

    def __init__(self, driver: Path, test: str) -> None:
        self._begin([str(driver)], None, Path(test).stem, driver.name)

    def _ask(self, function: str, path: Path, *args: Any) -> Any:
        if function == "tokenize_all":
            return [self._ask("tokenize", path, text, *args[1:]) for text in args[0]]
        if function == "tokenize":
            text, add, parse = args
            return [
                int(i) for i in self._line(f"tokenize {path} {int(add)} {int(parse)} .{text.encode().hex()}").split()
            ]
        n, bos, eos, sep, pad, nl, *rest = self._line(f"describe {path}").split()
        add, rest = rest[:3], rest[3:]
        tokens = [rest[4 * i : 4 * i + 4] for i in range(int(n))]
        digests = []
        for column in (2, 3):
            digest = hashlib.sha256()
            for one in tokens:
                piece = bytes.fromhex(one[column][1:])
                digest.update(len(piece).to_bytes(4, "little") + piece)
            digests.append(digest.hexdigest())
        ids = {"n": n, "bos": bos, "eos": eos, "sep": sep, "pad": pad, "nl": nl}
        return {
            **{name: int(value) for name, value in ids.items()},
            "add": [one == "1" for one in add],
            "eog": [i for i, one in enumerate(tokens) if one[0] == "1"],
            "control": [i for i, one in enumerate(tokens) if one[1] == "1"],
            "pieces": digests,
        }


def describe(tokenizer: Tokenizer) -> dict[str, Any]:
    digests = []
    for special in (True, False):
        digest = hashlib.sha256()
        for i in range(tokenizer.n_vocab):
            piece = tokenizer.token_bytes(i, special)
            digest.update(len(piece).to_bytes(4, "little") + piece)
        digests.append(digest.hexdigest())
    ids = {name: getattr(tokenizer, name) for name in ("bos", "eos", "sep", "pad", "nl")}
    return {
        "n": tokenizer.n_vocab,
        **{name: -1 if i is None else i for name, i in ids.items()},
        "add": [tokenizer.add_bos, tokenizer.add_eos, tokenizer.add_sep],
        "eog": sorted(tokenizer.eog_ids),
        "control": [i for i in range(tokenizer.n_vocab) if tokenizer.is_control(i)],
        "pieces": digests,
    }
