"""A vocabulary of the 256 bytes and one token that ends a text: for grammars alone."""


class ByteVocabulary:
    """Token n is byte n; END ends."""

    END = 256
    n_vocab = 257
    eog_ids = frozenset((END,))

    def token_bytes(self, token: int, special: bool = True) -> bytes:
        return bytes([token]) if token < self.END else b""

    def encode(self, text: str | bytes, add_special: bool = True, parse_special: bool = False) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


def refused_at(state: object, text: str) -> int | None:
    """Feed a text to a GrammarState or a LazyGrammar; where it is refused (-1: it may not end there), None if nowhere."""
    for place, byte in enumerate(text.encode()):
        if not state.allows(byte):
            return place
        state.accept(byte)
    return None if state.may_end else -1
