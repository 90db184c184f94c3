"""What every tokenizer does alike: special tokens in text, BOS and EOS, ids back to bytes and text.

Owns the public class `Tokenizer`, and which kinds there are.
"""

import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from pyggml.errors import TokenizerError
from pyggml.tokenizer.vocab import Attr, Vocab, boolean

log = logging.getLogger(__name__)

_SPACE = " \t\n\v\f\r"  # isspace of C
_SURROGATES = re.compile("[\ud800-\udfff]")
_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")

# plain integers: Python's flags take a microsecond an operation
_HIDDEN = int(Attr.UNKNOWN | Attr.CONTROL)
_LITERAL = int(Attr.UNKNOWN | Attr.CONTROL | Attr.USER_DEFINED)
_NORMAL, _BYTE, _LSTRIP, _RSTRIP = int(Attr.NORMAL), int(Attr.BYTE), int(Attr.LSTRIP), int(Attr.RSTRIP)

Fragment = str | int  # text still to be cut, or a token found in it


class Tokenizer(ABC):
    """Encodes and decodes with one file's vocabulary. Build it with `Tokenizer.from_metadata`.

    add_bos, add_eos   whether `encode` puts these tokens around a text, if it is asked to
    add_sep            whether a SEP token stands between two texts that are compared
    bos, eos, eot, eom, unk, sep, pad, mask and fim_* are token ids, or None where the vocabulary has no such token.
    """

    kinds: ClassVar[dict[str, "type[Tokenizer]"]] = {}
    """tokenizer.ggml.model -> the class that handles it."""

    def __init_subclass__(cls, models: Iterable[str] = (), **rest: Any) -> None:
        """A kind says with `models=` which values of tokenizer.ggml.model it handles."""
        super().__init_subclass__(**rest)
        for model in models:
            assert model not in cls.kinds, f"tokenizer {model!r} is handled twice"
            cls.kinds[model] = cls

    def __init__(self, vocab: Vocab, add_bos: bool, add_eos: bool) -> None:
        """`add_bos`, `add_eos`: the kind's defaults, already overruled by the file."""
        self.vocab = vocab
        self.add_bos = add_bos
        self.add_eos = add_eos
        self.add_sep = False
        for name, wanted in (("bos", add_bos), ("eos", add_eos)):
            if wanted and name not in vocab.special:
                raise TokenizerError(f"the vocabulary wants a {name.upper()} token added, but has none")
        special = vocab.special.get
        self.bos, self.eos, self.eot, self.eom = special("bos"), special("eos"), special("eot"), special("eom")
        self.unk, self.sep, self.pad, self.mask = special("unk"), special("sep"), special("pad"), special("mask")
        self.fim_pre, self.fim_suf, self.fim_mid = special("fim_pre"), special("fim_suf"), special("fim_mid")
        self.fim_pad, self.fim_rep, self.fim_sep = special("fim_pad"), special("fim_rep"), special("fim_sep")
        self._pieces: list[bytes | None] = [None] * len(vocab.texts)
        for i, attr in enumerate(vocab.attrs):
            if attr & _BYTE and not _BYTE_TOKEN.fullmatch(vocab.texts[i]):
                raise TokenizerError(
                    f"token {i} is of the byte type, but {vocab.texts[i]!r:.40} does not name a byte (<0x00>...)"
                )

    @staticmethod
    def from_metadata(metadata: Mapping[str, Any]) -> "Tokenizer":
        """`metadata`: GGUFFile.metadata, or a mapping with the same keys and lists. Raises TokenizerError."""
        kinds = Tokenizer.kinds
        model = metadata.get("tokenizer.ggml.model")
        if not isinstance(model, str) or model not in kinds:
            what = "no tokenizer.ggml.model" if model is None else f"tokenizer {model!r:.40}, which is not known"
            raise TokenizerError(f"the file has {what}; supported are: {', '.join(sorted(kinds))}")
        made = kinds[model].build(metadata)
        made.add_sep = boolean(metadata, "tokenizer.ggml.add_sep_token", made.add_sep)
        return made

    @classmethod
    @abstractmethod
    def build(cls, metadata: Mapping[str, Any]) -> "Tokenizer":
        """The kind's own constructor from metadata."""

    @abstractmethod
    def encode_fragments(self, fragments: list[Fragment]) -> list[int]:
        """Token ids of text fragments and tokens in their order."""

    @abstractmethod
    def normal_bytes(self, token: int) -> bytes:
        """What a NORMAL token stands for."""

    @property
    def n_vocab(self) -> int:
        return len(self.vocab.texts)

    @property
    def eog_ids(self) -> frozenset[int]:
        """The tokens that end a generation."""
        return self.vocab.eog_ids

    @property
    def suppressed(self) -> tuple[int, ...]:
        """Tokens that the file wants never to be chosen."""
        return self.vocab.suppressed

    def is_eog(self, token: int) -> bool:
        return token in self.vocab.eog_ids

    def is_control(self, token: int) -> bool:
        """Whether the file calls it a control token. Raises TokenizerError for an id that is none."""
        return bool(self.vocab.attrs[self._check(token)] & Attr.CONTROL)

    @property
    def nl(self) -> int | None:
        """The token of a line feed."""
        ids = self.encode("\n", add_special=False)
        return ids[0] if ids else self.pad

    def encode(
        self, text: str | bytes, add_special: bool = True, parse_special: bool = False, warn: bool = True
    ) -> list[int]:
        """Token ids of `text` (llama_tokenize). Bytes that are not UTF-8, and lone surrogates, count as U+FFFD each.

        add_special    puts BOS before and EOS after, where the vocabulary wants them
        parse_special  takes the texts of control tokens for these tokens; user-defined tokens are always taken
        warn           log where BOS or EOS would be there twice
        """
        if isinstance(text, bytes):
            text = text.decode("utf-8", "surrogateescape")
        text = _SURROGATES.sub("\ufffd", text)
        before, after = self.around() if add_special else ([], [])
        ids = [*before, *self.encode_fragments(self._partition(text, parse_special)), *after]
        if add_special and warn:
            self._warn_of_doubles(ids)
        return ids

    def around(self) -> tuple[list[int], list[int]]:
        """The tokens that are put before a text and after it: BOS and EOS, where the vocabulary wants them."""
        special = self.vocab.special
        return [special["bos"]] if self.add_bos else [], [special["eos"]] if self.add_eos else []

    def decode(self, ids: Iterable[int], special: bool = False) -> str:
        """The text of `ids`, nothing trimmed or tidied; `special` shows control tokens too. Bad bytes become U+FFFD."""
        return b"".join([self.token_bytes(i, special) for i in ids]).decode("utf-8", "replace")

    def token_bytes(self, token: int, special: bool = True) -> bytes:
        """The bytes a token adds to the text (llama_token_to_piece); of control tokens only with `special`."""
        attr = self.vocab.attrs[self._check(token)]
        if not special and attr & _HIDDEN:
            return b""
        piece = self._pieces[token]
        if piece is None:
            piece = self._pieces[token] = self._piece(token, attr)
        return piece

    def _piece(self, token: int, attr: int) -> bytes:
        text = self.vocab.texts[token]
        if attr & _LITERAL:
            return text.encode()
        if attr & _NORMAL:
            return self.normal_bytes(token)
        if attr & _BYTE:
            return bytes([int(text[3:5], 16)])
        return b""

    def _check(self, token: int) -> int:
        if not 0 <= token < len(self.vocab.texts):
            raise TokenizerError(f"token {token} is not in the vocabulary of {len(self.vocab.texts)}")
        return token

    def _partition(self, text: str, parse_special: bool) -> list[Fragment]:
        """`text` around the special tokens in it, the longest ones sought first (tokenizer_st_partition)."""
        fragments: list[Fragment] = [text] if text else []
        hidden = 0 if parse_special else _HIDDEN
        for token in self.vocab.special_order:
            found = self.vocab.texts[token]
            if found in text and not self.vocab.attrs[token] & hidden:
                attr = self.vocab.attrs[token]
                parts = ([f] if isinstance(f, int) else _cut(f, found, token, attr) for f in fragments)
                fragments = [part for some in parts for part in some]
        return fragments

    def _warn_of_doubles(self, ids: list[int]) -> None:
        if self.add_bos and ids[1:2] == [self.bos]:
            log.warning("the text begins with a BOS token, and the vocabulary adds another one")
        if self.add_eos and len(ids) >= 2 and ids[-2] == self.eos:
            log.warning("the text ends with an EOS token, and the vocabulary adds another one")


def _cut(fragment: str, found: str, token: int, attr: int) -> list[Fragment]:
    pieces = fragment.split(found)
    out: list[Fragment] = []
    for i, piece in enumerate(pieces):
        if attr & _LSTRIP and i < len(pieces) - 1:
            piece = piece.rstrip(_SPACE)
        if attr & _RSTRIP and i > 0:
            piece = piece.lstrip(_SPACE)
        if piece:
            out.append(piece)
        if i < len(pieces) - 1:
            out.append(token)
    return out
