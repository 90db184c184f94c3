"""A model without a vocabulary (`tokenizer.ggml.model` = none or no_vocab): its tokens are numbers that no text belongs to.

Owns the refusal of text; what is asked about ids is answered.
"""

from collections.abc import Mapping
from typing import Any, NoReturn

from pyggml.errors import TokenizerError
from pyggml.tokenizer.base import Fragment, Tokenizer
from pyggml.tokenizer.vocab import Vocab


class NoVocabulary(Tokenizer, models=("no_vocab", "none")):
    """No vocabulary: tokens are ids without texts, as many as `<architecture>.vocab_size` says; text is refused.

    After llama_vocab::impl::load in llama-vocab.cpp.
    """

    @classmethod
    def build(cls, metadata: Mapping[str, Any]) -> "NoVocabulary":
        key = f"{metadata.get('general.architecture')}.vocab_size"
        n = metadata.get(key, 0)
        if isinstance(n, bool) or not isinstance(n, int) or not 0 <= n < 1 << 31:
            raise TokenizerError(f"{key} is {n!r:.40}, must be a number of tokens")
        return cls(metadata["tokenizer.ggml.model"], n)

    def __init__(self, name: str, n_vocab: int) -> None:
        super().__init__(Vocab([], [], {}, {}), add_bos=False, add_eos=False)
        self._name, self._n_vocab = name, n_vocab

    @property
    def n_vocab(self) -> int:
        return self._n_vocab

    @property
    def nl(self) -> int | None:
        """None: no token is a line feed."""
        return None

    def is_control(self, token: int) -> bool:
        return False

    def encode(
        self, text: str | bytes, add_special: bool = True, parse_special: bool = False, warn: bool = True
    ) -> list[int]:
        """No text is no tokens. Raises TokenizerError for any other."""
        if text:
            self._refuse("text has no tokens here; give token ids")
        return []

    def token_bytes(self, token: int, special: bool = True) -> bytes:
        """Raises TokenizerError."""
        self._refuse(f"token {token} has no text")

    def encode_fragments(self, fragments: list[Fragment]) -> list[int]:
        self._refuse("text has no tokens here; give token ids")

    def normal_bytes(self, token: int) -> bytes:
        self._refuse(f"token {token} has no text")

    def _refuse(self, what: str) -> NoReturn:
        raise TokenizerError(f"the model has no vocabulary (tokenizer.ggml.model is {self._name!r}): {what}")
