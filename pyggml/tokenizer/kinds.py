"""Which class handles which `tokenizer.ggml.model`. A new kind is one file with a subclass of Tokenizer, and a line here.

Owns the registry only; knows nothing of what the kinds do.
"""

from pyggml.tokenizer.base import Tokenizer
from pyggml.tokenizer.bpe import BPE
from pyggml.tokenizer.hashed import Hashed
from pyggml.tokenizer.none import NoVocabulary
from pyggml.tokenizer.spm import SPM

KINDS: dict[str, type[Tokenizer]] = {
    "gpt2": BPE,
    "llama": SPM,
    "no_vocab": NoVocabulary,
    "none": NoVocabulary,
    "test": Hashed,
}
