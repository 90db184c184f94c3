"""The vocabulary of llama.cpp's own test models (`tokenizer.ggml.model` = test): tokens without a meaning, for any text.

Owns the hash.
"""

from collections.abc import Mapping
from typing import Any

from pyggml.tokenizer.base import Fragment, Tokenizer
from pyggml.tokenizer.vocab import Vocab, boolean

CHUNK = 5  # bytes of text that make a token


class Hashed(Tokenizer, models=("test",)):
    """Of llama.cpp's test models: each five bytes of text become some token, and a token becomes its number.

    After LLAMA_VOCAB_TYPE_TEST in llama-vocab.cpp.
    """

    @classmethod
    def build(cls, metadata: Mapping[str, Any]) -> "Hashed":
        vocab = Vocab.from_metadata(metadata, {})
        bos, eos = (boolean(metadata, f"tokenizer.ggml.add_{name}_token", False) for name in ("bos", "eos"))
        return cls(vocab, bos, eos)

    def encode_fragments(self, fragments: list[Fragment]) -> list[int]:
        ids: list[int] = []
        for fragment in fragments:
            if isinstance(fragment, int):
                ids.append(fragment)
                continue
            data = fragment.encode()
            ids += [self._token(data[at : at + CHUNK]) for at in range(0, len(data), CHUNK)]
        return ids

    def normal_bytes(self, token: int) -> bytes:
        return f"{token:x}".encode()

    def _token(self, data: bytes) -> int:
        value = 0
        for byte in data:
            value = value * 31 + byte  # five of them stay below 2^64
        return value % self.n_vocab
