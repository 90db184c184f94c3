"""The vocabulary of RWKV (`tokenizer.ggml.model` = rwkv): sequences of bytes, the longest that fits is taken.

Owns how its tokens are written in the file.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from pyggml.errors import TokenizerError
from pyggml.tokenizer.base import Fragment, Tokenizer
from pyggml.tokenizer.vocab import Vocab, boolean, prefixes

_ESCAPES = {ord("t"): 9, ord("n"): 10, ord("r"): 13}


class RWKV(Tokenizer, models=("rwkv",)):
    """After llm_tokenizer_rwkv_session in llama-vocab.cpp: of the tokens that the rest of the text begins with, the longest."""

    @classmethod
    def build(cls, metadata: Mapping[str, Any]) -> "RWKV":
        vocab = Vocab.from_metadata(metadata, {})
        add = (boolean(metadata, f"tokenizer.ggml.add_{name}_token", False) for name in ("bos", "eos"))
        return cls(vocab, *add)

    def __init__(self, vocab: Vocab, add_bos: bool, add_eos: bool) -> None:
        super().__init__(vocab, add_bos, add_eos)
        self._bytes = [unescaped(text) for text in vocab.texts]
        self._ids = {data: token for token, data in enumerate(self._bytes)}
        self._lengths = [0] * 256  # of the longest token that begins with a byte
        for data in self._bytes:
            if data:
                self._lengths[data[0]] = max(len(data), self._lengths[data[0]])

    def around(self) -> tuple[list[int], list[int]]:
        """Nothing, whatever the file says."""
        return [], []

    def encode_fragments(self, fragments: list[Fragment]) -> list[int]:
        ids: list[int] = []
        for fragment in fragments:
            if isinstance(fragment, int):
                ids.append(fragment)
            else:
                ids += self._cut(fragment.encode())
        return ids

    @cached_property
    def _prefixes(self) -> frozenset[bytes]:
        return prefixes(self._ids)

    def _cut(self, data: bytes) -> list[int]:
        ids, at = [], 0
        begins, known = self._prefixes, self._ids
        while at < len(data):
            token, after = None, at + 1
            for end in range(at + 1, min(len(data), at + self._lengths[data[at]]) + 1):
                piece = data[at:end]
                if piece not in begins:
                    break
                found = known.get(piece)
                if found is not None:
                    token, after = found, end
            token = self.unk if token is None else token
            if token is None:
                raise TokenizerError(f"the vocabulary has no token for byte 0x{data[at]:02X}, none for <unk>")
            ids.append(token)
            at = after
        return ids

    def normal_bytes(self, token: int) -> bytes:
        return self._bytes[token]

    def _piece(self, token: int, attr: int) -> bytes:
        """The bytes, of control tokens too."""
        return self._bytes[token]


def unescaped(text: str) -> bytes:
    r"""What \t, \n, \r, \xHH and a backslash before any other character stand for (llama_unescape_rwkv_token)."""
    data, out, at = text.encode(), bytearray(), 0
    while at < len(data):
        byte = data[at]
        at += 1
        if byte != 0x5C:
            out.append(byte)
            continue
        if at == len(data):
            break
        byte = data[at]
        at += 1
        if byte != ord("x"):
            out.append(_ESCAPES.get(byte, byte))
            continue
        digits = data[at : at + 2]
        try:
            out.append(int(digits.decode(), 16))
        except ValueError:
            raise TokenizerError(f"token {text!r:.40} names no byte: two hexadecimal digits must follow \\x") from None
        at += 2
    return bytes(out)
