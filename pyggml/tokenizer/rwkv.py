"""The vocabulary of RWKV (`tokenizer.ggml.model` = rwkv): sequences of bytes, the longest that fits is taken.

Owns how its tokens are written in the file.
"""

from collections.abc import Mapping
from typing import Any

from pyggml.errors import TokenizerError
from pyggml.tokenizer.base import Fragment, Tokenizer
from pyggml.tokenizer.vocab import Vocab, boolean

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

    def _cut(self, data: bytes) -> list[int]:
        ids, at = [], 0
        while at < len(data):
            for end in range(min(len(data), at + self._lengths[data[at]]), at, -1):
                token = self._ids.get(data[at:end])
                if token is not None:
                    break
            else:
                token, end = self.unk, at + 1
                if token is None:
                    raise TokenizerError(f"the vocabulary has no token for byte 0x{data[at]:02X}, none for <unk>")
            ids.append(token)
            at = end
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
