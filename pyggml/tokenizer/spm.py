"""SentencePiece-style BPE with byte fallback (`tokenizer.ggml.model` = llama): pairs are merged by the tokens' scores.

Owns the merging and the bytes of characters that are no tokens. The `tokenizers` library is of no use here: its merges
have a strict order, while scores may be equal (those of all runs of spaces in Llama 2's vocabulary are), and then the
leftmost pair comes first.
"""

import heapq
import logging
import math
import re
from collections.abc import Mapping
from functools import cached_property, lru_cache
from typing import Any

from pyggml.errors import TokenizerError
from pyggml.tokenizer.base import Fragment, Tokenizer
from pyggml.tokenizer.pairs import LONG, Pairs
from pyggml.tokenizer.vocab import Vocab, boolean

log = logging.getLogger(__name__)

SPACE = "\u2581"  # stands for a space in tokens
_WORD = re.compile(f"{SPACE}*[^{SPACE}]+|{SPACE}+")
_CACHED_WORDS, _CACHED_LENGTH = 1 << 15, 32


class SPM(Tokenizer, models=("llama",)):
    """After llm_tokenizer_spm_session in llama-vocab.cpp: of all pairs that make a token, the one with the highest score
    is merged first, of equals the leftmost; a character that is no token becomes its bytes.
    """

    @classmethod
    def build(cls, metadata: Mapping[str, Any]) -> "SPM":
        vocab = Vocab.from_metadata(metadata, {"unk": 0, "bos": 1, "eos": 2})
        return cls(
            vocab,
            scores_of(metadata, len(vocab.texts)),
            boolean(metadata, "tokenizer.ggml.add_space_prefix", True),
            boolean(metadata, "tokenizer.ggml.add_bos_token", True),
            boolean(metadata, "tokenizer.ggml.add_eos_token", False),
        )

    def __init__(self, vocab: Vocab, scores: list[float], add_space_prefix: bool, add_bos: bool, add_eos: bool) -> None:
        super().__init__(vocab, add_bos, add_eos)
        self.add_space_prefix = add_space_prefix
        self._scores = scores
        self._bytes = [_byte_token(vocab, byte) for byte in range(256)]
        # Text may be cut before spaces unless a token goes on beyond them; words come again, so they are remembered.
        self._cut = not any(_crosses(text, vocab.ids) for text in vocab.texts)
        self._remembered = lru_cache(_CACHED_WORDS)(self._word)

    @property
    def nl(self) -> int | None:
        """The token of a line feed."""
        return self.pad if self._bytes[10] is None else self._bytes[10]

    def encode_fragments(self, fragments: list[Fragment]) -> list[int]:
        """Text at the beginning, and after a token, is given a space, if the vocabulary wants it."""
        ids: list[int] = []
        prefix = self.add_space_prefix
        for fragment in fragments:
            if isinstance(fragment, int):
                ids.append(fragment)
            else:
                text = f" {fragment}" if prefix else fragment
                text = text.replace(" ", SPACE)
                for word in _WORD.findall(text) if self._cut else (text,):
                    ids += self._remembered(word) if len(word) <= _CACHED_LENGTH else self._word(word)
            prefix = self.add_space_prefix and isinstance(fragment, int)
        return ids

    def normal_bytes(self, token: int) -> bytes:
        return self.vocab.texts[token].replace(SPACE, " ").encode()

    @cached_property
    def _pairs(self) -> Pairs:
        ids, scores = self.vocab.ids, self._scores
        return Pairs(
            (text[:at], text[at:], -scores[token])
            for text, token in ids.items()
            for at in range(1, len(text))
            if (at == 1 or text[:at] in ids) and (at == len(text) - 1 or text[at:] in ids)
        )

    def _word(self, text: str) -> list[int]:
        out: list[int] = []
        merged = self._pairs.merge(text) if len(text) > LONG else merge_by_score(text, self.vocab.ids, self._scores)
        for piece in merged:
            token = self.vocab.ids.get(piece)
            out += self._fall_back(piece) if token is None else (token,)
        return out

    def _fall_back(self, character: str) -> list[int]:
        ids = [self.unk if token is None else token for token in (self._bytes[b] for b in character.encode())]
        known = [token for token in ids if token is not None]
        if len(known) < len(ids):
            raise TokenizerError(f"the vocabulary has no token for {character!r}, none for its bytes, none for <unk>")
        return known


def merge_by_score(text: str, ids: Mapping[str, int], scores: list[float]) -> list[str]:
    """The pieces of `text`: a heap of candidates by score and place, and a linked list of what stands beside what."""
    pieces = list(text)
    before, after = list(range(-1, len(text) - 1)), [*range(1, len(text)), -1]
    heap: list[tuple[float, int, int, str]] = []

    def consider(left: int, right: int) -> None:
        if left >= 0 and right >= 0:
            token = ids.get(joined := pieces[left] + pieces[right])
            if token is not None:
                heapq.heappush(heap, (-scores[token], left, right, joined))

    for right in range(1, len(pieces)):
        consider(right - 1, right)
    while heap:
        _, left, right, joined = heapq.heappop(heap)
        if not pieces[left] or not pieces[right] or len(pieces[left]) + len(pieces[right]) != len(joined):
            continue  # one of the two has been merged meanwhile
        pieces[left], pieces[right] = joined, ""
        after[left] = after[right]
        if after[left] >= 0:
            before[after[left]] = left
        consider(before[left], left)
        consider(left, after[left])
    return [piece for piece in pieces if piece]


def scores_of(metadata: Mapping[str, Any], n: int) -> list[float]:
    """The tokens' scores. Raises TokenizerError."""
    key = "tokenizer.ggml.scores"
    value = metadata.get(key)
    if value is None:
        log.warning("the file has no %s: all tokens are merged alike", key)
        return [0.0] * n
    scores = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(scores, list) or (scores and not isinstance(scores[0], int | float)):
        raise TokenizerError(f"{key} must be an array of numbers")
    if len(scores) < n:
        raise TokenizerError(f"{key} has {len(scores)} entries for {n} tokens")
    bad = next((i for i in range(n) if math.isnan(scores[i])), None)
    if bad is not None:
        raise TokenizerError(f"{key}: the score of token {bad} is not a number")
    return scores[:n]


def _byte_token(vocab: Vocab, byte: int) -> int | None:
    token = vocab.ids.get(f"<0x{byte:02X}>")
    return vocab.ids.get(chr(byte)) if token is None and byte < 0x80 else token


def _crosses(text: str, ids: Mapping[str, int]) -> bool:
    """Whether merging can make a token that has a space after something else."""
    if SPACE not in text.lstrip(SPACE):
        return False
    n = len(text)
    return any((at == 1 or text[:at] in ids) and (at == n - 1 or text[at:] in ids) for at in range(1, n))
