"""What can be asked of a `Llama` without computing: sizes, special tokens, text to tokens and back.

Owns these answers.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence

from pyggml.api.checks import ParameterTypeError, tokens_of
from pyggml.api.tokenizers import BaseLlamaTokenizer, LlamaTokenizer
from pyggml.model.model import Model
from pyggml.runtime.context import Context
from pyggml.tokenizer import Tokenizer


class LlamaFacts:
    """The part of `Llama` that needs a context's model and a tokenizer, no more.

    metadata    the file's numbers and texts, as texts
    tokenizer_  what texts are cut by: the file's tokenizer, unless the constructor was given another
    """

    _tokenizer: Tokenizer
    _n_ctx: int
    metadata: dict[str, str]
    tokenizer_: BaseLlamaTokenizer
    _own_tokenizer: LlamaTokenizer
    vocab_only: bool

    @property
    @abstractmethod
    def model(self) -> Model:
        """The model; raises ContextError after `close`."""

    @property
    @abstractmethod
    def context(self) -> Context:
        """The context; raises ContextError after `close`, and where the model makes embeddings and no text."""

    @abstractmethod
    def _check_open(self) -> None:
        """Raises ContextError after `close`."""

    def n_ctx(self) -> int:
        """Tokens that the context holds."""
        self._check_open()
        return self._n_ctx

    def n_embd(self) -> int:
        """Width of the model."""
        if self.vocab_only:
            self._check_open()
            return int(self.metadata.get(f"{self.metadata.get('general.architecture')}.embedding_length", 0))
        return self.model.config.n_embd

    def n_vocab(self) -> int:
        """Tokens that the model knows, with or without a vocabulary."""
        if self.vocab_only:
            self._check_open()
            return self._tokenizer.n_vocab
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
        if not isinstance(text, bytes | bytearray | str):
            raise ParameterTypeError(f"text={text!r:.60}: must be bytes")
        return self.tokenizer_.tokenize(bytes(text) if isinstance(text, bytearray) else text, add_bos, special)

    def detokenize(
        self, tokens: Iterable[int], prev_tokens: Sequence[int] | None = None, special: bool = False
    ) -> bytes:
        """The bytes of these tokens, the same whatever came before them; of control tokens only with `special`.

        After BOS a space at the beginning is left out: SentencePiece's tokenizers have put it there.
        """
        return self.tokenizer_.detokenize(tokens_of("tokens", tokens), prev_tokens, special)

    def tokenizer(self) -> LlamaTokenizer:
        """The file's own tokenizer, which takes and gives text as well as bytes."""
        return self._own_tokenizer


def _id(token: int | None) -> int:
    return -1 if token is None else token
