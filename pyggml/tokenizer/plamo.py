"""The vocabularies of PLaMo 2 and 3 (`tokenizer.ggml.model` = plamo2, plamo3): of all ways to cut a text, the cheapest.

Owns the search and where PLaMo 3 cuts before it.
"""

import math
import re
from collections.abc import Mapping
from functools import cached_property
from itertools import pairwise
from typing import Any

from pyggml.errors import TokenizerError
from pyggml.tokenizer.base import Fragment, Tokenizer
from pyggml.tokenizer.spm import scores_of
from pyggml.tokenizer.vocab import Attr, Vocab, boolean, prefixes

INVALID, UNKNOWN = -20_000_000, -10_000_000
"""Scores, ten thousand times as large as the file's: at most which a token is not used; that of a character by its bytes."""

_TAG = re.compile("<\\|plamo:[^|\\s\x1c-\x1f\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]{0,64}\\|>")
_REPEATED = re.compile(r"([^\n])\1{3,}| {2,}")
_BOUNDARY = "\uee00"


class Plamo(Tokenizer, models=("plamo2", "plamo3")):
    """After llm_tokenizer_plamo2 in llama-vocab.cpp: of all ways to cut the text into tokens the one whose scores have the
    largest sum, of equals that with the longest first token; a character that is in no token becomes its bytes.
    """

    @classmethod
    def build(cls, metadata: Mapping[str, Any]) -> "Plamo":
        vocab = Vocab.from_metadata(metadata, {"bos": 1, "eos": 2, "unk": 0, "pad": 3})
        return cls(
            vocab,
            scores_of(metadata, len(vocab.texts)),
            metadata["tokenizer.ggml.model"] == "plamo3",
            boolean(metadata, "tokenizer.ggml.add_bos_token", False),
            boolean(metadata, "tokenizer.ggml.add_eos_token", False),
        )

    def __init__(self, vocab: Vocab, scores: list[float], cut_first: bool, add_bos: bool, add_eos: bool) -> None:
        super().__init__(vocab, add_bos, add_eos)
        self.cut_first = cut_first
        self._byte_ids: list[int] = []
        for byte in range(256):
            token = vocab.ids.get(f"<0x{byte:02X}>")
            if token is None or not vocab.attrs[token] & Attr.BYTE:
                raise TokenizerError(
                    f"a PLaMo vocabulary needs a token of the byte type for each byte, <0x{byte:02X}> is none"
                )
            self._byte_ids.append(token)
        byte_type = int(Attr.BYTE)
        self._scored: dict[str, tuple[int, int]] = {}
        self._lengths: dict[str, int] = {}  # of the longest token that begins with a character
        for token, (text, attr, score) in enumerate(zip(vocab.texts, vocab.attrs, scores, strict=True)):
            scaled = _rounded(score * 1e4) if math.isfinite(score) else INVALID
            if not attr & byte_type and scaled > INVALID:
                self._scored[text] = (token, scaled)
                self._lengths[text[0]] = max(len(text), self._lengths.get(text[0], 0))

    def encode_fragments(self, fragments: list[Fragment]) -> list[int]:
        ids: list[int] = []
        for fragment in fragments:
            if isinstance(fragment, int):
                ids.append(fragment)
            elif self.cut_first:
                for segment in segments(fragment):
                    ids += self._best(segment)
            else:
                ids += self._best(fragment.removeprefix("\ufeff"))
        return ids

    def normal_bytes(self, token: int) -> bytes:
        return self.vocab.texts[token].encode()

    def _piece(self, token: int, attr: int) -> bytes:
        """Tokens of all types but bytes are shown as they are."""
        return super()._piece(token, attr) if attr & Attr.BYTE else self.normal_bytes(token)

    @cached_property
    def _prefixes(self) -> frozenset[str]:
        return prefixes(self._scored)

    def _best(self, text: str) -> list[int]:
        """From right to left: for each beginning the least cost, the token there and where it ends; no token: bytes."""
        n = len(text)
        costs, tokens, ends = [0] * (n + 1), [-1] * n, list(range(1, n + 1))
        scored, lengths, begins = self._scored, self._lengths, self._prefixes
        for at in range(n - 1, -1, -1):
            least: float = math.inf
            for end in range(at + 1, min(n, at + lengths.get(text[at], 0)) + 1):
                piece = text[at:end]
                if piece not in begins:
                    break
                found = scored.get(piece)
                if found is not None and costs[end] - found[1] <= least:
                    least, tokens[at], ends[at] = costs[end] - found[1], found[0], end
            if costs[at + 1] - UNKNOWN < least:
                least, tokens[at], ends[at] = costs[at + 1] - UNKNOWN, -1, at + 1
            costs[at] = int(least)
        ids, at = [], 0
        while at < n:
            ids += [tokens[at]] if tokens[at] >= 0 else [self._byte_ids[b] for b in text[at].encode()]
            at = ends[at]
        return ids


def segments(text: str) -> list[str]:
    """Text cut around tags such as <|plamo:msg|>, runs of two spaces and of four equal characters, and at U+EE00, which is
    left out (llm_tokenizer_plamo2::encode)."""
    cuts, at = {0, len(text)}, 0
    while (found := _TAG.search(text, at)) is not None:
        cuts |= {found.start(), found.end()}
        at = found.end()
    tags = sorted(cuts)
    for start, end in pairwise(tags):
        for run in _REPEATED.finditer(text, start, end):
            cuts |= {run.start(), run.end()}
    places = sorted(cuts)
    pieces = [text[start:end] for start, end in pairwise(places)]
    return [part for piece in pieces for part in piece.split(_BOUNDARY) if part]


def _rounded(x: float) -> int:
    """To the next integer, halves away from zero (std::round)."""
    return int(math.copysign(math.floor(abs(x) + 0.5), x))
