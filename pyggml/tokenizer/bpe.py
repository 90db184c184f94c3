"""Byte-level BPE (`tokenizer.ggml.model` = gpt2), with the merging done by the `tokenizers` library.

Owns the way from GGUF's lists to that library's model.
"""

import logging
from collections.abc import Mapping
from itertools import chain, filterfalse
from operator import add
from typing import TYPE_CHECKING, Any

from pyggml.errors import TokenizerError
from pyggml.tokenizer.base import Fragment, Tokenizer
from pyggml.tokenizer.character_bpe import CharacterMerges
from pyggml.tokenizer.pretokenizers import DEFAULT, PreTokenizer, pre_tokenizer
from pyggml.tokenizer.vocab import Vocab, boolean, string_list

if TYPE_CHECKING:
    import tokenizers

log = logging.getLogger(__name__)
WORDS_KEPT = 0
"""By the library, of those that it has merged: it keeps them for each thread, until that ends and not until the tokenizer does, so that a
server which loads one model after the other would grow."""


LONG = 1 << 13  # characters, of which some milliseconds


def _byte_characters() -> list[str]:
    """The character that stands for each byte: itself where it prints, else one from U+0100 on (GPT-2's encoder.py)."""
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [b for b in range(256) if b not in shown]
    return [chr(b) if b in shown else chr(0x100 + hidden.index(b)) for b in range(256)]


BYTE_CHARACTERS = _byte_characters()
_TO_BYTE = {c: b for b, c in enumerate(BYTE_CHARACTERS)}


class BPE(Tokenizer, models=("gemma4", "gpt2", "whitespace")):
    """After llm_tokenizer_bpe_session in llama-vocab.cpp: patterns cut words out of the text's bytes, or of its characters
    (character_bpe.py), and within a word the pair that stands first among the merges is merged first.
    """

    @classmethod
    def build(cls, metadata: Mapping[str, Any]) -> "BPE":
        pre = _pre_tokenizer(metadata)
        vocab = Vocab.from_metadata(metadata, _special(metadata, pre))
        add_bos = boolean(metadata, "tokenizer.ggml.add_bos_token", pre.add_bos)
        return cls(
            vocab,
            string_list(metadata, "tokenizer.ggml.merges"),
            pre,
            add_bos or pre.always_bos,
            boolean(metadata, "tokenizer.ggml.add_eos_token", False),
            lowercase=boolean(metadata, "tokenizer.ggml.normalizer.lowercase", False),
        )

    def __init__(
        self, vocab: Vocab, merges: list[str], pre: PreTokenizer, add_bos: bool, add_eos: bool, lowercase: bool = False
    ) -> None:
        """`lowercase` counts where text is cut at white space."""
        super().__init__(vocab, add_bos, add_eos)
        self.add_sep = pre.add_sep
        self._characters = CharacterMerges(vocab.ids, merges, pre, lowercase) if pre.characters else None
        if self._characters is not None:
            return
        pairs = [(m[:at], m[at + 1 :]) for m in dict.fromkeys(merges) if (at := m.find(" ", 1)) > 0]
        self._fallbacks = _fallbacks(vocab.ids, pairs)
        ids = vocab.ids
        if self._fallbacks:
            ids = ids | {text: len(ids) + i for i, text in enumerate(self._fallbacks)}
        self._tokenizer = _tokenizers_model(ids, pairs, pre)
        self._fallback_ids = list(self._fallbacks.values())

    def encode_fragments(self, fragments: list[Fragment]) -> list[int]:
        ids: list[int] = []
        for fragment in fragments:
            if isinstance(fragment, int):
                ids.append(fragment)
            elif self._characters is not None:
                ids += self._characters.encode(fragment)
            else:
                ids += self._encoded(fragment)
        n = len(self.vocab.texts)
        if self._characters is None and self._fallbacks and ids and max(ids) >= n:
            ids = [j for i in ids for j in ([i] if i < n else self._fallback_ids[i - n])]
        return ids

    def _encoded(self, text: str) -> list[int]:
        """The library keeps the interpreter to itself while it encodes, unless it gets several texts: others would stand still."""
        if len(text) < LONG:
            return list(self._tokenizer.encode(text, add_special_tokens=False).ids)
        (found,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)
        return list(found.ids)

    def normal_bytes(self, token: int) -> bytes:
        """A character that stands for no byte is shown as llama.cpp shows it."""
        text = self.vocab.texts[token]
        if self._characters is not None and self._characters.escaped:
            return self._characters.bytes_of(text)
        try:
            return bytes([_TO_BYTE[c] for c in text])
        except KeyError:
            parts = [_TO_BYTE.get(c, c) for c in text]
            return b"".join(
                bytes([p]) if isinstance(p, int) else f"[UNK_BYTE_0x{p.encode().hex()}{text}]".encode() for p in parts
            )


def _special(metadata: Mapping[str, Any], pre: PreTokenizer) -> dict[str, int]:
    """The default ids of the kind."""
    if metadata.get("tokenizer.ggml.model") == "gemma4":
        return {}
    return {"bos": 11, "eos": 11} if pre.default_bos else {"eos": 11}


def _pre_tokenizer(metadata: Mapping[str, Any]) -> PreTokenizer:
    model = metadata.get("tokenizer.ggml.model")
    name = "gemma4" if model == "gemma4" else metadata.get("tokenizer.ggml.pre", "")
    if not isinstance(name, str):
        raise TokenizerError(f"tokenizer.ggml.pre must be a string, it is {name!r:.40}")
    if (model == "whitespace") != (name == "whitespace"):
        raise TokenizerError(
            f"tokenizer {model!r} with the pre-tokenizer {name!r:.40}: both are to be 'whitespace', or none"
        )
    if not name:
        log.warning("the file names no pre-tokenizer (tokenizer.ggml.pre), the default is used: text may suffer")
        return DEFAULT
    return pre_tokenizer(name)


def _fallbacks(ids: dict[str, int], pairs: list[tuple[str, str]]) -> dict[str, list[int]]:
    """Bytes and merged pieces that are no tokens -> the tokens that llama.cpp gives in their place.

    The library wants every piece in its vocabulary, where a damaged or trimmed one may lack some. llama.cpp merges them
    all the same and then looks up each byte of the piece's UTF-8 on its own, which finds ASCII characters only.
    """
    lefts, rights = zip(*pairs, strict=True) if pairs else ((), ())
    pieces = chain(BYTE_CHARACTERS, lefts, rights, map(add, lefts, rights))
    missing = dict.fromkeys(filterfalse(ids.__contains__, pieces))
    return {piece: [ids[c] for c in piece if c.isascii() and c in ids] for piece in missing}


def _tokenizers_model(ids: dict[str, int], pairs: list[tuple[str, str]], pre: PreTokenizer) -> "tokenizers.Tokenizer":
    from tokenizers import Regex, models, pre_tokenizers
    from tokenizers import Tokenizer as Library

    try:
        bpe = models.BPE(vocab=ids, merges=pairs, ignore_merges=pre.ignore_merges, cache_capacity=WORDS_KEPT)
        model = Library(bpe)
    except Exception as e:  # the library raises plain Exception
        raise TokenizerError(f"the vocabulary and its merges do not fit together: {e}") from None
    splits: list[Any] = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pre.patterns]
    splits.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    model.pre_tokenizer = pre_tokenizers.Sequence(splits)
    return model
