"""The functions of llama.h that ask a vocabulary, for programs that read all tokens of a model.

What is a pointer there is an object here: `Llama.model`, and what `llama_model_get_vocab` gives for it.
"""

import ctypes
from typing import Any
from weakref import WeakKeyDictionary

from pyggml.model.model import Model
from pyggml.tokenizer import Tokenizer

_VOCABULARIES: WeakKeyDictionary[Model, Tokenizer] = WeakKeyDictionary()


def llama_model_get_vocab(model: Model) -> Tokenizer:
    """The vocabulary of a model."""
    found = _VOCABULARIES.get(model)
    if found is None:
        found = _VOCABULARIES[model] = Tokenizer.from_metadata(model.file.metadata)
    return found


def llama_token_to_piece(vocab: Tokenizer, token: int, buf: Any, length: int, lstrip: int, special: bool) -> int:
    """Write the token's bytes into `buf`, without its first `lstrip` spaces; how many, or below 0 that many where they do not
    fit."""
    data = vocab.token_bytes(int(token), bool(special))
    n_spaces = min(lstrip, len(data) - len(data.lstrip(b" ")))
    data = data[n_spaces:]
    if len(data) > length:
        return -len(data)
    ctypes.memmove(buf, data, len(data))
    return len(data)


def llama_vocab_n_tokens(vocab: Tokenizer) -> int:
    """Tokens in it."""
    return vocab.n_vocab


def llama_vocab_bos(vocab: Tokenizer) -> int:
    """The token that begins a text, or -1."""
    return -1 if vocab.bos is None else vocab.bos


def llama_vocab_eos(vocab: Tokenizer) -> int:
    """The token that ends a text, or -1."""
    return -1 if vocab.eos is None else vocab.eos


def llama_vocab_nl(vocab: Tokenizer) -> int:
    """The token of a line feed, or -1."""
    return -1 if vocab.nl is None else vocab.nl


def llama_vocab_is_eog(vocab: Tokenizer, token: int) -> bool:
    """Whether the token ends a generation."""
    return vocab.is_eog(int(token))


def llama_vocab_get_text(vocab: Tokenizer, token: int) -> bytes:
    """The token as the file has it."""
    return vocab.vocab.texts[int(token)].encode()
