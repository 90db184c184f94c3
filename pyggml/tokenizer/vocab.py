"""The vocabulary of a GGUF file: the tokens' texts and attributes, the special ids, which tokens end a generation.

Owns what all kinds of tokenizer share, as llama_vocab::impl::load in llama-vocab.cpp has it.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntFlag
from typing import Any, TypeVar

import numpy as np

from pyggml.errors import TokenizerError

T = TypeVar("T", str, bytes)
log = logging.getLogger(__name__)


class Attr(IntFlag):
    """enum llama_token_attr (llama.h)."""

    UNDEFINED = 0
    UNKNOWN = 1 << 0
    UNUSED = 1 << 1
    NORMAL = 1 << 2
    CONTROL = 1 << 3
    USER_DEFINED = 1 << 4
    BYTE = 1 << 5
    LSTRIP = 1 << 7
    RSTRIP = 1 << 8


# tokenizer.ggml.token_type (enum llama_token_type) -> attribute; other numbers are UNDEFINED
TYPES = {1: Attr.NORMAL, 2: Attr.UNKNOWN, 3: Attr.CONTROL, 4: Attr.USER_DEFINED, 5: Attr.UNUSED, 6: Attr.BYTE}

# Special token -> keys that may give its id; the last one present counts
ID_KEYS: dict[str, tuple[str, ...]] = {
    "bos": ("bos_token_id",),
    "eos": ("eos_token_id",),
    "eot": ("eot_token_id",),
    "eom": ("eom_token_id",),
    "unk": ("unknown_token_id",),
    "sep": ("seperator_token_id",),  # so spelt in the format
    "pad": ("padding_token_id",),
    "mask": ("mask_token_id",),
    "fim_pre": ("fim_pre_token_id", "prefix_token_id"),
    "fim_suf": ("fim_suf_token_id", "suffix_token_id"),
    "fim_mid": ("fim_mid_token_id", "middle_token_id"),
    "fim_pad": ("fim_pad_token_id",),
    "fim_rep": ("fim_rep_token_id",),
    "fim_sep": ("fim_sep_token_id",),
}

# Special token -> texts by which it is found where no key gives its id. llama.cpp takes the one that its hash map
# happens to meet first; here the first of the list counts.
ID_TEXTS: dict[str, tuple[str, ...]] = {
    "eot": (
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "<｜end▁of▁sentence｜>",
        "<end_of_utterance>",
    ),
    "eom": ("<|eom_id|>",),
    "fim_pre": (
        "<|fim_prefix|>",
        "<fim-prefix>",
        "<fim_prefix>",
        "<｜fim▁begin｜>",
        "<PRE>",
        "▁<PRE>",
        "<|code_prefix|>",
        "<|prefix|>",
        "<|plamo:fim_prefix|>",
    ),
    "fim_suf": (
        "<|fim_suffix|>",
        "<fim-suffix>",
        "<fim_suffix>",
        "<｜fim▁hole｜>",
        "<SUF>",
        "▁<SUF>",
        "<|code_suffix|>",
        "<|suffix|>",
        "<|plamo:fim_suffix|>",
    ),
    "fim_mid": (
        "<|fim_middle|>",
        "<fim-middle>",
        "<fim_middle>",
        "<｜fim▁end｜>",
        "<MID>",
        "▁<MID>",
        "<|code_middle|>",
        "<|middle|>",
        "<|plamo:fim_middle|>",
    ),
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>", "<|plamo:file_separator|>"),
}

# Texts that end a generation wherever they stand in a vocabulary
EOG_TEXTS = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
    "<|ifm|im_end|>",
)

# Part of the answer's text in the models that have them, whatever the file says
ALWAYS_SHOWN = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")


WHITE_SPACE = frozenset(
    map(chr, (*range(9, 14), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000))
)
"""unicode_set_whitespace of unicode-data.cpp: what Python calls so, but for four separators of ASCII (1C to 1F)."""


@dataclass(slots=True)
class Vocab:
    """texts[id] and attrs[id] describe a token, ids[text] finds it; `special` holds the ids of ID_KEYS that exist."""

    texts: list[str]
    attrs: list[int]
    ids: dict[str, int]
    special: dict[str, int]
    eog_ids: frozenset[int] = frozenset()
    suppressed: tuple[int, ...] = ()  # tokens that the file wants never to be chosen
    special_order: list[int] = field(default_factory=list)  # tokens looked for in text, the longest first

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], special: Mapping[str, int]) -> "Vocab":
        """`special`: the kind's default ids. Raises TokenizerError."""
        texts = string_list(metadata, "tokenizer.ggml.tokens")
        if "" in texts:
            texts = [text or f"[EMPTY_{i}]" for i, text in enumerate(texts)]
        ids = dict(zip(texts, range(len(texts)), strict=True))
        if len(ids) != len(texts):
            i = next(i for i, text in enumerate(texts) if ids[text] != i)
            raise TokenizerError(f"tokens {i} and {ids[texts[i]]} of the vocabulary are the same: {texts[i]!r:.40}")
        vocab = cls(texts, _attrs(metadata, len(texts)), ids, {})
        vocab._find_special(metadata, special)
        vocab._find_eog()
        vocab.suppressed = _suppressed(metadata, len(texts))
        looked_for = int(Attr.CONTROL | Attr.USER_DEFINED | Attr.UNKNOWN)  # Python's flags are slow in loops
        order = [i for i, attr in enumerate(vocab.attrs) if attr & looked_for]
        vocab.special_order = sorted(order, key=lambda i: -len(texts[i].encode()))
        vocab._strip_rules(metadata)
        return vocab

    def _find_special(self, metadata: Mapping[str, Any], defaults: Mapping[str, int]) -> None:
        n = len(self.texts)
        for name, keys in ID_KEYS.items():
            found = defaults.get(name)
            if found is not None and found >= n:
                found = None
            for key in keys:
                value = metadata.get(f"tokenizer.ggml.{key}")
                if value is None:
                    continue
                if isinstance(value, bool) or not isinstance(value, int):
                    raise TokenizerError(f"tokenizer.ggml.{key} must be an integer, it is {value!r:.40}")
                if 0 <= value < n:
                    found = value
                else:
                    log.warning("tokenizer.ggml.%s is %d, but there are %d tokens: ignored", key, value, n)
            if found is None and name in ID_TEXTS:
                found = next((self.ids[text] for text in ID_TEXTS[name] if text in self.ids), None)
                if found is not None:
                    self._make_control(found)
            if found is not None:
                self.special[name] = found

    def _find_eog(self) -> None:
        control = int(Attr.CONTROL)
        for i, attr in enumerate(self.attrs):
            if attr & control and "unused" in self.texts[i]:
                self.attrs[i] |= Attr.UNUSED
        eog = {self.special[name] for name in ("fim_pad", "fim_rep", "fim_sep") if name in self.special}
        for text in EOG_TEXTS:
            if text in self.ids:
                eog.add(self.ids[text])
                self._make_control(self.ids[text])
        for text in ALWAYS_SHOWN:
            if text in self.ids:
                self.attrs[self.ids[text]] = Attr.USER_DEFINED
        eog |= {self.special[name] for name in ("eos", "eot", "eom") if name in self.special}
        texts = {self.texts[i] for i in eog}
        calls = texts & {"<|call|>", "<|calls|>"}
        if calls and texts & {"<|return|>", "<|flush|>"} and "<|end|>" in texts:  # there it ends a message only
            eog.discard(self.ids["<|end|>"])
            self.attrs[self.ids["<|end|>"]] = Attr.USER_DEFINED
        if texts & {"<|tool_response>", "<|plamo:eos|>"} and "</s>" in texts:  # there it is a tag of HTML
            eog.discard(self.ids["</s>"])
            self.attrs[self.ids["</s>"]] = Attr.NORMAL
        self.eog_ids = frozenset(eog)

    def _strip_rules(self, metadata: Mapping[str, Any]) -> None:
        """White space that some models' special tokens swallow; files do not tell, llama.cpp goes by their names."""
        pre, name = (str(metadata.get(key, "")) for key in ("tokenizer.ggml.pre", "general.name"))
        if any(part in pre for part in ("jina-v2-de", "jina-v2-es", "jina-v2-code")):
            self._set(("<mask>",), Attr.LSTRIP)
        elif "phi-3" in name.lower() or "phi3" in name.lower():
            for i in self.special_order:
                self.attrs[i] |= Attr.RSTRIP
            self._set(("</s>",), Attr.RSTRIP)
            for text in ("<unk>", "<s>", "<|endoftext|>"):
                if text in self.ids:
                    self.attrs[self.ids[text]] &= ~Attr.RSTRIP
        elif "modern-bert" in name.lower():
            self._set(("[MASK]",), Attr.LSTRIP)

    def _set(self, texts: Iterable[str], attr: Attr) -> None:
        for text in texts:
            if text in self.ids:
                self.attrs[self.ids[text]] |= attr

    def _make_control(self, token: int) -> None:
        if not self.attrs[token] & Attr.CONTROL:
            log.info("token %d %r looks like a control token and is made one", token, self.texts[token])
            self.attrs[token] |= Attr.CONTROL


def prefixes(texts: Iterable[T]) -> frozenset[T]:
    """All beginnings of `texts`, so that a search for the longest that stands somewhere ends where none goes on."""
    return frozenset(text[:n] for text in texts for n in range(1, len(text) + 1))


def lower(c: str) -> str:
    """A character in lower case, of which the first one counts (unicode_tolower)."""
    return c.lower()[0]


def string_list(metadata: Mapping[str, Any], key: str) -> list[str]:
    """An array of strings as a list. Raises TokenizerError when it is missing or something else."""
    value = metadata.get(key)
    if value is None:
        raise TokenizerError(f"the file has no {key}")
    texts = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(texts, list) or (texts and not isinstance(texts[0], str)):
        raise TokenizerError(f"{key} must be an array of strings")
    return texts


def boolean(metadata: Mapping[str, Any], key: str, default: bool) -> bool:
    """A value that is True or False. Raises TokenizerError for another kind."""
    value = metadata.get(key, default)
    if not isinstance(value, bool):
        raise TokenizerError(f"{key} must be a bool, it is {value!r:.40}")
    return value


def _suppressed(metadata: Mapping[str, Any], n: int) -> tuple[int, ...]:
    """Those of tokenizer.ggml.suppress_tokens that there are. Raises TokenizerError."""
    ids = metadata.get("tokenizer.ggml.suppress_tokens")
    if ids is None:
        return ()
    if not isinstance(ids, np.ndarray) or ids.dtype != np.int32:
        raise TokenizerError("tokenizer.ggml.suppress_tokens must be an array of 32-bit integers")
    return tuple(i for i in ids.tolist() if 0 <= i < n)


def _attrs(metadata: Mapping[str, Any], n: int) -> list[int]:
    types = metadata.get("tokenizer.ggml.token_type")
    if types is None:
        return [int(Attr.NORMAL)] * n
    numbers = types.tolist() if hasattr(types, "tolist") else types
    if not isinstance(numbers, list) or (numbers and not isinstance(numbers[0], int)):
        raise TokenizerError("tokenizer.ggml.token_type must be an array of integers")
    if len(numbers) < n:
        raise TokenizerError(f"tokenizer.ggml.token_type has {len(numbers)} entries for {n} tokens")
    table = {number: int(attr) for number, attr in TYPES.items()}
    return [table.get(number, 0) for number in numbers[:n]]
