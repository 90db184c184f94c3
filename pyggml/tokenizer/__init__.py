"""Text to token ids and back, from a GGUF file's metadata: `Tokenizer.from_metadata(file.metadata)`.

Owns the names that other packages use, and the list of kinds: a new one is one file with a subclass of `Tokenizer`, and its
name in an import here; knows nothing of models or sampling. Importing it is cheap: the `tokenizers`
library is loaded when the first tokenizer is built.
"""

from pyggml.tokenizer import bpe, hashed, none, plamo, rwkv, spm, unigram, wordpiece  # noqa: F401, the kinds
from pyggml.tokenizer.base import Tokenizer
from pyggml.tokenizer.stream import StreamDecoder
from pyggml.tokenizer.vocab import Attr, Vocab

__all__ = ["Attr", "StreamDecoder", "Tokenizer", "Vocab"]
