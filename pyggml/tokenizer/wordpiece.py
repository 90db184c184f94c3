"""WordPiece (`tokenizer.ggml.model` = bert): words are cut greedily into the longest tokens, from left to right.

Owns the normalisation of BERT and the search.
"""

import unicodedata
from collections.abc import Mapping
from functools import cached_property, lru_cache
from typing import Any

from pyggml.errors import TokenizerError
from pyggml.tokenizer.base import Fragment, Tokenizer
from pyggml.tokenizer.spm import SPACE
from pyggml.tokenizer.vocab import WHITE_SPACE, Vocab, boolean, lower, prefixes

_CACHED_WORDS, _CACHED_LENGTH = 1 << 15, 32
_KEPT = 1 << 16  # characters whose normal form is kept
_IDEOGRAPHS = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)
"""llm_tokenizer_wpm_session::is_chinese_char, with the gap that it has between 2B820 and 2B91F."""


class WordPiece(Tokenizer, models=("bert",)):
    """After llm_tokenizer_wpm_session in llama-vocab.cpp: a word is cut into the longest tokens from left to right, its
    first one beginning with U+2581; a word of which a part is no token is the unknown token.
    """

    @classmethod
    def build(cls, metadata: Mapping[str, Any]) -> "WordPiece":
        vocab = Vocab.from_metadata(metadata, {"bos": 101, "unk": 100, "sep": 102, "pad": 0, "mask": 103})
        lowercase = boolean(metadata, "tokenizer.ggml.normalizer.lowercase", True)
        return cls(
            vocab,
            lowercase,
            boolean(metadata, "tokenizer.ggml.normalizer.strip_accents", lowercase),
            boolean(metadata, "tokenizer.ggml.add_bos_token", True),
            boolean(metadata, "tokenizer.ggml.add_eos_token", False),
        )

    def __init__(self, vocab: Vocab, lowercase: bool, strip_accents: bool, add_bos: bool, add_eos: bool) -> None:
        super().__init__(vocab, add_bos, add_eos)
        self.add_sep = True
        for name in ("bos", "sep", "unk"):
            if name not in vocab.special:
                raise TokenizerError(f"a WordPiece vocabulary needs a {name.upper()} token, this one has none")
        self.lowercase, self.strip_accents = lowercase, strip_accents
        self._longest = max(len(text) for text in vocab.texts)
        self._normal = _Normal(lowercase, strip_accents)
        self._remembered = lru_cache(_CACHED_WORDS)(self._word)

    @property
    def nl(self) -> int | None:
        """Padding: words have no line feeds."""
        return self.pad

    def around(self) -> tuple[list[int], list[int]]:
        """BOS (which is called CLS here) and SEP, always."""
        return [self.vocab.special["bos"]], [self.vocab.special["sep"]]

    def encode_fragments(self, fragments: list[Fragment]) -> list[int]:
        ids: list[int] = []
        for fragment in fragments:
            if isinstance(fragment, int):
                ids.append(fragment)
            else:
                for word in self.words(fragment):
                    ids += self._remembered(word) if len(word) <= _CACHED_LENGTH else self._word(word)
        return ids

    def normal_bytes(self, token: int) -> bytes:
        return self.vocab.texts[token].replace(SPACE, " ").encode()

    def words(self, text: str) -> list[str]:
        """Text between white space, in lower case and without accents if the vocabulary wants it; punctuation, symbols of
        ASCII and ideographs are words of their own, control characters are nothing (preprocess)."""
        return [word for word in text.translate(self._normal).split(" ") if word]

    @cached_property
    def _prefixes(self) -> frozenset[str]:
        return prefixes(self.vocab.ids)

    def _word(self, word: str) -> list[int]:
        text, ids, at, found = SPACE + word, self.vocab.ids, 0, []
        begins = self._prefixes
        while at < len(text):
            token, after = None, at
            for end in range(at + 1, min(len(text), at + self._longest) + 1):
                piece = text[at:end]
                if piece not in begins:
                    break
                known = ids.get(piece)
                if known is not None:
                    token, after = known, end
            if token is None:
                return [self.vocab.special["unk"]]
            found.append(token)
            at = after
        return found


class _Normal(dict[int, str]):
    """For str.translate: what becomes of a character; it stands between spaces where it is a word of its own."""

    def __init__(self, lowercase: bool, strip_accents: bool) -> None:
        super().__init__()
        self._lowercase, self._strips = lowercase, strip_accents

    def __missing__(self, point: int) -> str:
        c = chr(point)
        c = base_letter(c) if self._strips else c
        kind = _kind(c)
        shown = lower(c) if self._lowercase else c
        if kind == "white":
            made = " "
        elif kind == "alone":
            made = f" {shown} "
        else:
            made = shown if kind == "letter" or (kind == "mark" and not self._strips) else ""
        if len(self) < _KEPT:
            self[point] = made
        return made


def _kind(c: str) -> str:
    if c in WHITE_SPACE:
        return "white"
    category = unicodedata.category(c)
    if c in "\0\ufffd" or (category[0] == "C" and category != "Cn"):
        return "nothing"
    if category[0] == "M":
        return "mark"
    if category[0] == "P" or (category[0] == "S" and ord(c) < 0x7F) or any(a <= ord(c) <= b for a, b in _IDEOGRAPHS):
        return "alone"
    return "letter"


def base_letter(c: str) -> str:
    """The first character of its canonical decomposition; the accents that follow are left out
    (unicode_cpts_normalize_nfd)."""
    return c if c.isascii() else unicodedata.normalize("NFD", c)[0]
