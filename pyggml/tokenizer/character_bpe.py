"""BPE whose pieces are characters, as in Gemma 4: spaces are written U+2581, and a character that is no token is its bytes.

Owns how text is cut before merging there, and the merging; knows no file and no special tokens. The `tokenizers` library is not
asked: it takes seconds to read Gemma's half a million merges, which a dictionary holds as they are.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Sequence
from functools import cached_property, lru_cache

from pyggml.tokenizer.pairs import LONG, Pairs
from pyggml.tokenizer.pretokenizers import PreTokenizer
from pyggml.tokenizer.spm import SPACE
from pyggml.tokenizer.vocab import WHITE_SPACE, lower

_LINES = re.compile("\n+|[^\n]+")
_WORDS = re.compile(f"{SPACE}[^{SPACE}]*")
_SPACED = re.compile(f"{SPACE}*[^{SPACE}]+|{SPACE}+")
_NO_SPACE = re.compile(f"[^{''.join(sorted(WHITE_SPACE))}]+")
_CROSSING = re.compile(f"[^{SPACE} \n] ?{SPACE}")
_CACHED_WORDS, _CACHED_LENGTH = 1 << 15, 64


class CharacterMerges:
    """`encode(text)` after llm_tokenizer_bpe_session in llama-vocab.cpp where `byte_encode` is false.

    merges           "left right" each, the one that is merged first at the front
    pre.characters   "lines": a line is merged as a whole; "words": each word with the space before it, and a line begins
                     with a space; "spaces": what stands between white space, which is left out
    lowercase        text is put into lower case first
    """

    def __init__(self, ids: dict[str, int], merges: Sequence[str], pre: PreTokenizer, lowercase: bool = False) -> None:
        self.pre, self._lowercase, self._ids = pre, lowercase, ids
        self.escaped = pre.characters != "spaces"
        self._ranks = dict(zip(reversed(merges), range(len(merges) - 1, -1, -1), strict=True))  # the first one counts
        # Lines may be cut before spaces unless a merge goes on beyond them; words come again, so they are remembered.
        self._cut = _CROSSING.search("\n".join(merges)) is None
        self._bytes = [ids.get(f"<0x{byte:02X}>") for byte in range(256)]
        self._remembered = lru_cache(_CACHED_WORDS)(self._merged)

    def encode(self, text: str) -> list[int]:
        """The ids of a text without special tokens."""
        ids: list[int] = []
        for word in self._words(text):
            token = self._ids.get(word) if self.pre.newlines and word[0] == "\n" else None
            if token is not None:
                ids.append(token)
            else:
                ids += self._remembered(word) if len(word) <= _CACHED_LENGTH else self._merged(word)
        return ids

    def _words(self, text: str) -> list[str]:
        if self.pre.characters == "spaces":
            return _NO_SPACE.findall("".join(lower(c) for c in text) if self._lowercase else text)
        lines: list[str] = _LINES.findall(text.replace(" ", SPACE))
        words: list[str] = []
        for line in lines:
            if line[0] == "\n":
                words.append(line)
            elif self.pre.characters == "words":
                words += _WORDS.findall(line if line[0] == SPACE else SPACE + line)
            else:
                words += _SPACED.findall(line) if self._cut else (line,)
        return words

    def _merged(self, word: str) -> list[int]:
        found: list[int] = []
        for piece in self._pairs.merge(word) if len(word) > LONG else self._pieces(word):
            token = self._ids.get(piece)
            if token is not None:
                found.append(token)
            else:  # bytes that are no tokens are left out
                found += (token for token in map(self._bytes.__getitem__, piece.encode()) if token is not None)
        return found

    @cached_property
    def _pairs(self) -> Pairs:
        parted = ((*merge.partition(" "), rank) for merge, rank in self._ranks.items())
        return Pairs((left, right, rank) for left, _, right, rank in parted if left and right and " " not in right)

    def _pieces(self, word: str) -> list[str]:
        """A heap of pairs by rank and place, and a linked list of what stands beside what."""
        pieces, ranks = list(word), self._ranks
        before, after = list(range(-1, len(word) - 1)), [*range(1, len(word)), -1]
        heap: list[tuple[int, int, int, str]] = []

        def consider(left: int, right: int) -> None:
            if left >= 0 and right >= 0:
                rank = ranks.get(f"{pieces[left]} {pieces[right]}")
                if rank is not None:
                    heapq.heappush(heap, (rank, left, right, pieces[left] + pieces[right]))

        for right in range(1, len(pieces)):
            consider(right - 1, right)
        while heap:
            _, left, right, joined = heapq.heappop(heap)
            if not pieces[left] or not pieces[right] or pieces[left] + pieces[right] != joined:
                continue  # one of the two has been merged meanwhile
            pieces[left], pieces[right] = joined, ""
            after[left] = after[right]
            if after[left] >= 0:
                before[after[left]] = left
            consider(before[left], left)
            consider(left, after[left])
        return [piece for piece in pieces if piece]

    @staticmethod
    def bytes_of(text: str) -> bytes:
        """What a token stands for."""
        return text.replace(SPACE, " ").encode()
