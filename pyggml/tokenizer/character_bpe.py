"""BPE whose pieces are characters, as in Gemma 4: spaces are written U+2581, and a character that is no token is its bytes.

Owns how text is cut before merging there, and the way to the `tokenizers` library.
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import chain
from operator import add
from typing import TYPE_CHECKING

from pyggml.errors import TokenizerError
from pyggml.tokenizer.pretokenizers import PreTokenizer
from pyggml.tokenizer.spm import SPACE
from pyggml.tokenizer.vocab import WHITE_SPACE, lower

if TYPE_CHECKING:
    import tokenizers

_LINES = re.compile("\n+|[^\n]+")
_WORDS = re.compile(f"{SPACE}[^{SPACE}]*")
_NO_SPACE = re.compile(f"[^{''.join(sorted(WHITE_SPACE))}]+")
_CACHED_WORDS, _CACHED_LENGTH = 1 << 14, 256


class CharacterMerges:
    """`encode(text)` after llm_tokenizer_bpe_session in llama-vocab.cpp where `byte_encode` is false.

    pre.characters   "lines": a line is merged as a whole; "words": each word with the space before it, and a line begins
                     with a space; "spaces": what stands between white space, which is left out
    lowercase        text is put into lower case first
    """

    def __init__(
        self, ids: dict[str, int], pairs: list[tuple[str, str]], pre: PreTokenizer, lowercase: bool = False
    ) -> None:
        """Raises TokenizerError."""
        self.pre, self._lowercase, self._ids = pre, lowercase, ids
        self.escaped = pre.characters != "spaces"
        bytes_, n = [f"<0x{byte:02X}>" for byte in range(256)], len(ids)
        lefts, rights = zip(*pairs, strict=True) if pairs else ((), ())
        pieces = chain(bytes_, lefts, rights, map(add, lefts, rights))
        missing = {piece: n + i for i, piece in enumerate(dict.fromkeys(p for p in pieces if p not in ids))}
        self._in_place = {
            number: [] if piece in bytes_ else [ids[bytes_[b]] for b in piece.encode() if bytes_[b] in ids]
            for piece, number in missing.items()
        }
        self._n, self._library = n, _library(ids | missing, pairs)
        self._remembered = lru_cache(_CACHED_WORDS)(self._merged)

    def encode(self, text: str) -> list[int]:
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
        if self.pre.characters == "lines":
            return lines
        words: list[str] = []
        for line in lines:
            words += [line] if line[0] == "\n" else _WORDS.findall(line if line[0] == SPACE else SPACE + line)
        return words

    def _merged(self, word: str) -> list[int]:
        ids: list[int] = self._library.encode(word, add_special_tokens=False).ids
        if self._in_place and max(ids, default=0) >= self._n:
            return [j for i in ids for j in ([i] if i < self._n else self._in_place[i])]
        return ids

    @staticmethod
    def bytes_of(text: str) -> bytes:
        """What a token stands for."""
        return text.replace(SPACE, " ").encode()


def _library(ids: dict[str, int], pairs: list[tuple[str, str]]) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer, models

    try:
        return Tokenizer(models.BPE(vocab=ids, merges=pairs, byte_fallback=True))
    except Exception as e:  # the library raises plain Exception
        raise TokenizerError(f"the vocabulary and its merges do not fit together: {e}") from None
