"""llama_cpp.llama: `Llama` and what goes with it."""

from pyggml.api.arguments import (
    LogitsProcessor,
    LogitsProcessorList,
    MinTokensLogitsProcessor,
    StoppingCriteriaList,
)
from pyggml.api.arguments import StoppingCriterion as StoppingCriteria
from pyggml.api.cache import BaseLlamaCache, LlamaCache, LlamaDiskCache, LlamaRAMCache
from pyggml.api.llama import Llama
from pyggml.api.state import LlamaState
from pyggml.api.tokenizers import BaseLlamaTokenizer, LlamaTokenizer
from pyggml.compat.llama_cpp.llama_speculative import LlamaDraftModel
from pyggml.compat.llama_cpp.llama_types import *  # noqa: F403
from pyggml.grammar import LlamaGrammar

__all__ = [
    "BaseLlamaCache",
    "BaseLlamaTokenizer",
    "Llama",
    "LlamaCache",
    "LlamaDiskCache",
    "LlamaDraftModel",
    "LlamaGrammar",
    "LlamaRAMCache",
    "LlamaState",
    "LlamaTokenizer",
    "LogitsProcessor",
    "LogitsProcessorList",
    "MinTokensLogitsProcessor",
    "StoppingCriteria",
    "StoppingCriteriaList",
]
