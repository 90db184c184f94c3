"""What cuts texts into tokens for a `Llama`: the model file's tokenizer, or one that the user brings.

Owns the classes of llama_cpp.llama_tokenizer, and the step from such a tokenizer to what the engine asks of its own.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

from pyggml.errors import PyggmlError
from pyggml.gguf import GGUFFile
from pyggml.tokenizer import Tokenizer


class MissingPackageError(PyggmlError, ImportError):
    """A package that pyggml itself does not need."""


class BaseLlamaTokenizer(ABC):
    """What `Llama(tokenizer=...)` takes."""

    @abstractmethod
    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = True) -> list[int]:
        """Token ids of UTF-8 text. `special`: the names of control tokens stand for these."""

    @abstractmethod
    def detokenize(self, tokens: list[int], prev_tokens: Sequence[int] | None = None, special: bool = False) -> bytes:
        """The bytes that these tokens add to those before; of control tokens only with `special`."""


class _HasTokenizer(Protocol):
    _tokenizer: Tokenizer


class LlamaTokenizer(BaseLlamaTokenizer):
    """The tokenizer of a model file."""

    def __init__(self, llama: _HasTokenizer) -> None:
        """That of the file that this `Llama` was made of."""
        self._tokenizer = llama._tokenizer

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = True) -> list[int]:
        """Token ids. `add_bos`: BOS and EOS, where the file asks for them."""
        return self._tokenizer.encode(text, add_special=add_bos, parse_special=special)

    def detokenize(self, tokens: list[int], prev_tokens: Sequence[int] | None = None, special: bool = False) -> bytes:
        """The bytes of these tokens, the same whatever came before them.

        After BOS a space at the beginning is left out: SentencePiece's tokenizers have put it there.
        """
        data = b"".join(self._tokenizer.token_bytes(token, special) for token in tokens)
        return data[1:] if tokens and tokens[0] == self._tokenizer.bos and data.startswith(b" ") else data

    def encode(self, text: str, add_bos: bool = True, special: bool = True) -> list[int]:
        """Token ids of a str."""
        return self.tokenize(text.encode("utf-8", "ignore"), add_bos, special)

    def decode(self, tokens: list[int]) -> str:
        """The text of these tokens."""
        return self.detokenize(tokens).decode("utf-8", "ignore")

    @classmethod
    def from_ggml_file(cls, path: str) -> LlamaTokenizer:
        """That of a GGUF file. Raises GGUFError, TokenizerError."""
        return cls(_OfFile(path))


class _OfFile:
    def __init__(self, path: str) -> None:
        with GGUFFile.open(path) as file:
            self._tokenizer = Tokenizer.from_metadata(file.metadata)


class LlamaHFTokenizer(BaseLlamaTokenizer):
    """A tokenizer of the package transformers."""

    def __init__(self, hf_tokenizer: Any) -> None:
        self.hf_tokenizer = hf_tokenizer

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = True) -> list[int]:
        """Token ids; `special` decides whether BOS and the like are added."""
        ids: list[int] = self.hf_tokenizer.encode(text.decode("utf-8", "ignore"), add_special_tokens=special)
        return ids

    def detokenize(self, tokens: list[int], prev_tokens: Sequence[int] | None = None, special: bool = False) -> bytes:
        """What the text gets longer by when these tokens follow those before."""
        before = list(prev_tokens or ())
        return self._text([*before, *tokens], special)[len(self._text(before, special)) if before else 0 :]

    def _text(self, tokens: list[int], special: bool) -> bytes:
        text: str = self.hf_tokenizer.decode(tokens, skip_special_tokens=not special)
        return text.encode("utf-8", "ignore")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str) -> LlamaHFTokenizer:
        """By the name of a repository or a folder. Raises MissingPackageError."""
        try:
            from transformers import AutoTokenizer
        except ImportError:
            raise MissingPackageError(
                "LlamaHFTokenizer needs the package transformers: pip install transformers"
            ) from None
        return cls(AutoTokenizer.from_pretrained(pretrained_model_name_or_path=pretrained_model_name_or_path))


def with_encoding_of(tokenizer: Tokenizer, given: BaseLlamaTokenizer) -> Tokenizer:
    """The file's tokenizer, but texts are cut into tokens by the one given."""

    def encode(
        text: str | bytes, add_special: bool = True, parse_special: bool = False, warn: bool = True
    ) -> list[int]:
        return given.tokenize(text.encode() if isinstance(text, str) else text, add_special, parse_special)

    other = copy.copy(tokenizer)
    other.encode = encode  # type: ignore[method-assign]
    return other


class Spoken:
    """What tokens of one answer add to its text, as the tokenizer that was given says it: asked once a token, in order."""

    def __init__(self, given: BaseLlamaTokenizer, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self._given, self._tokenizer, self._before = given, tokenizer, list(prompt)

    def token_bytes(self, token: int, special: bool = True) -> bytes:
        """As of a Vocabulary of runtime/sequence.py."""
        data = self._given.detokenize([token], self._before, special)
        self._before.append(token)
        return data

    def is_eog(self, token: int) -> bool:
        """Whether the model file says that it ends a text."""
        return self._tokenizer.is_eog(token)
