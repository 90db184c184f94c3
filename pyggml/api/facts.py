"""What can be asked of a `Llama` without computing: sizes, special tokens, text to tokens and back.

Owns these answers.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence

from pyggml.model.model import Model
from pyggml.runtime.context import Context
from pyggml.tokenizer import Tokenizer


class LlamaFacts:
    """The part of `Llama` that needs a context's model and a tokenizer, no more."""

    _tokenizer: Tokenizer
    _n_ctx: int

    @property
    @abstractmethod
    def model(self) -> Model:
        """The model; raises ContextError after `close`."""

    @property
    @abstractmethod
    def context(self) -> Context:
        """The context; raises ContextError after `close`, and where the model makes embeddings and no text."""

    def n_ctx(self) -> int:
        """Tokens that the context holds."""
        _ = self.model
        return self._n_ctx

    def n_embd(self) -> int:
        """Width of the model."""
        return self.model.config.n_embd

    def n_vocab(self) -> int:
        """Tokens that the model knows, with or without a vocabulary."""
        return self.model.n_vocab

    def token_eos(self) -> int:
        """The token that ends a text, -1 if there is none."""
        return _id(self._tokenizer.eos)

    def token_bos(self) -> int:
        """The token that begins a text, -1 if there is none."""
        return _id(self._tokenizer.bos)

    def token_nl(self) -> int:
        """The token of a line feed, -1 if there is none."""
        return _id(self._tokenizer.nl)

    def is_eog(self, token: int) -> bool:
        """Whether the token ends a generation."""
        return self._tokenizer.is_eog(token)

    def fim_tokens(self) -> tuple[int, int, int] | None:
        """The tokens before a prefix, before a suffix and before the middle, for models trained to fill in."""
        tok = self._tokenizer
        if tok.fim_pre is None or tok.fim_suf is None or tok.fim_mid is None:
            return None
        return tok.fim_pre, tok.fim_suf, tok.fim_mid

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """Token ids of UTF-8 text. `add_bos`: BOS and EOS, where the file asks for them; `special`: read their names."""
        return self._tokenizer.encode(text, add_special=add_bos, parse_special=special)

    def detokenize(
        self, tokens: Iterable[int], prev_tokens: Sequence[int] | None = None, special: bool = False
    ) -> bytes:
        """The bytes of these tokens, the same whatever came before them; of control tokens only with `special`.

        After BOS a space at the beginning is left out: SentencePiece's tokenizers have put it there.
        """
        ids = [int(token) for token in tokens]
        data = b"".join(self._tokenizer.token_bytes(token, special) for token in ids)
        return data[1:] if ids and ids[0] == self._tokenizer.bos and data.startswith(b" ") else data


def _id(token: int | None) -> int:
    return -1 if token is None else token
