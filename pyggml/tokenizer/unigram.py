"""SentencePiece's unigram model (`tokenizer.ggml.model` = t5): of all ways to cut a text, the one with the best sum of scores.

Owns the search; `charsmap.py` says which characters stand for others.
"""

import re
from collections.abc import Mapping
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from pyggml.errors import TokenizerError
from pyggml.tokenizer.base import Fragment, Tokenizer
from pyggml.tokenizer.charsmap import Charsmap
from pyggml.tokenizer.spm import SPACE, scores_of
from pyggml.tokenizer.vocab import Attr, Vocab, boolean, prefixes

_WORD = re.compile(f"{SPACE}*[^{SPACE}]+|{SPACE}+")
_CACHED_WORDS, _CACHED_LENGTH = 1 << 15, 32
_LONG = 1 << 10  # characters, of which some milliseconds
UNKNOWN_PENALTY = 10.0
"""How much worse an unknown character is than the worst token."""


class Unigram(Tokenizer, models=("t5",)):
    """After llm_tokenizer_ugm_session in llama-vocab.cpp: of all ways to cut the text into tokens the one whose scores
    have the largest sum; characters that are in no token are unknown, several in a row are one unknown token.
    """

    @classmethod
    def build(cls, metadata: Mapping[str, Any]) -> "Unigram":
        vocab = Vocab.from_metadata(metadata, {"eos": 1, "unk": 2, "pad": 0})
        return cls(
            vocab,
            scores_of(metadata, len(vocab.texts)),
            Charsmap.from_metadata(metadata),
            boolean(metadata, "tokenizer.ggml.add_space_prefix", False),
            boolean(metadata, "tokenizer.ggml.remove_extra_whitespaces", False),
            boolean(metadata, "tokenizer.ggml.add_bos_token", False),
            boolean(metadata, "tokenizer.ggml.add_eos_token", True),
        )

    def __init__(
        self, vocab: Vocab, scores: list[float], charsmap: Charsmap | None, add_space_prefix: bool,
        remove_extra_spaces: bool, add_bos: bool, add_eos: bool,
    ) -> None:  # fmt: skip
        super().__init__(vocab, add_bos, add_eos)
        if "unk" not in vocab.special:
            raise TokenizerError("a unigram vocabulary needs an UNK token, this one has none")
        self.add_space_prefix, self.remove_extra_spaces = add_space_prefix, remove_extra_spaces
        self._charsmap = charsmap
        normal, user, control = int(Attr.NORMAL), int(Attr.USER_DEFINED), int(Attr.CONTROL)
        used, all_normal = normal | user | int(Attr.UNUSED), []
        self._scored: dict[str, tuple[int, float]] = {}
        self._lengths: dict[str, int] = {}  # of the longest token that begins with a character
        for token, (text, attr, score) in enumerate(zip(vocab.texts, vocab.attrs, scores, strict=True)):
            if attr & normal:
                all_normal.append(score)
            if attr & used and attr & (control | normal) != control:  # control tokens count as unused by their texts
                self._scored[text] = (token, 0.0 if attr & user else score)
                if len(text) > self._lengths.get(text[0], 0):
                    self._lengths[text[0]] = len(text)
        if not all_normal:
            raise TokenizerError("a unigram vocabulary needs normal tokens, this one has none")
        self._unknown = float(np.float32(min(all_normal)) - np.float32(UNKNOWN_PENALTY))
        # Text may be cut before spaces unless a token goes on beyond them. That changes no sum: scores are F32 numbers of like
        # size, and doubles hold their sums exactly. Words come again, so they are remembered.
        self._cut = not any(SPACE in text.lstrip(SPACE) for text in self._scored)
        self._remembered = lru_cache(_CACHED_WORDS)(self._best)
        self._nl = self._first_of("\n")

    @property
    def nl(self) -> int | None:
        """The token of a line feed; where it is white space like others, 0, which is padding by default."""
        return self._nl

    def _first_of(self, text: str) -> int | None:
        ids = self.encode_fragments([text])
        return ids[0] if ids else 0

    def encode_fragments(self, fragments: list[Fragment]) -> list[int]:
        ids: list[int] = []
        for fragment in fragments:
            if isinstance(fragment, int):
                ids.append(fragment)
            else:
                text = self.normalized(fragment)
                for word in _WORD.findall(text) if self._cut or not text else (text,):
                    found = self._remembered(word) if len(word) <= _CACHED_LENGTH else self._best(word)
                    ids += found[1:] if ids and ids[-1] == found[0] == self.unk else found
        return ids

    def normal_bytes(self, token: int) -> bytes:
        return self.vocab.texts[token].replace(SPACE, " ").encode()

    def normalized(self, text: str) -> str:
        """With U+2581 for spaces, one for a run of them if the vocabulary wants it, and one before the first word
        (llm_tokenizer_ugm_session::normalize)."""
        if self._charsmap is not None:
            text = self._charsmap.replaced(text)
        if self.remove_extra_spaces:
            return "".join(SPACE + word for word in text.split(" ") if word)
        first = len(text) - len(text.lstrip(" "))
        if self.add_space_prefix and first < len(text):  # before what is no space, whatever stands before it
            text = f"{text[:first]} {text[first:]}"
        return text.replace(" ", SPACE)

    @cached_property
    def _prefixes(self) -> frozenset[str]:
        return prefixes(self._scored)

    def _best(self, text: str) -> list[int]:
        """Viterbi from left to right: for each end of a token the best sum, the token and where it begins."""
        n, unk = len(text), self.vocab.special["unk"]
        sums = [0.0] + [float("-inf")] * n
        tokens, starts = [unk] * (n + 1), [0] * (n + 1)
        scored, lengths, unknown = self._scored, self._lengths, self._unknown
        begins = self._prefixes if n > _LONG else None  # made where it is worth it: there may be half a million
        for at in range(n):
            before, known = sums[at], False
            for end in range(at + 1, min(n, at + lengths.get(text[at], 0)) + 1):
                piece = text[at:end]
                found = scored.get(piece)
                if found is None:
                    if begins is not None and piece not in begins:
                        break
                else:
                    known = known or end == at + 1
                    if before + found[1] > sums[end]:
                        sums[end], tokens[end], starts[end] = before + found[1], found[0], at
            if not known and before + unknown > sums[at + 1]:
                sums[at + 1], tokens[at + 1], starts[at + 1] = before + unknown, unk, at
        ids: list[int] = []
        end = n
        while end:
            if not (tokens[end] == unk and ids and ids[-1] == unk):
                ids.append(tokens[end])
            end = starts[end]
        return ids[::-1]
