"""pyggml: ggml in pure Python. `from pyggml import Llama`; importing the package alone loads nothing else."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyggml.api.arguments import (
        LLAMA_SPLIT_MODE_LAYER,
        LLAMA_SPLIT_MODE_NONE,
        LLAMA_SPLIT_MODE_ROW,
        LogitsProcessorList,
        StoppingCriteriaList,
    )
    from pyggml.api.cache import LlamaCache, LlamaDiskCache, LlamaRAMCache
    from pyggml.api.llama import Llama
    from pyggml.api.state import LlamaState
    from pyggml.grammar import LlamaGrammar

    __version__: str

_HOMES = {
    "Llama": "api.llama",
    "LlamaGrammar": "grammar",
    "LlamaState": "api.state",
    "LlamaCache": "api.cache",
    "LlamaDiskCache": "api.cache",
    "LlamaRAMCache": "api.cache",
    "LogitsProcessorList": "api.arguments",
    "StoppingCriteriaList": "api.arguments",
    "LLAMA_SPLIT_MODE_NONE": "api.arguments",
    "LLAMA_SPLIT_MODE_LAYER": "api.arguments",
    "LLAMA_SPLIT_MODE_ROW": "api.arguments",
}
"""Each name and the module that it comes from when it is first asked for."""

__all__ = [
    "LLAMA_SPLIT_MODE_LAYER",
    "LLAMA_SPLIT_MODE_NONE",
    "LLAMA_SPLIT_MODE_ROW",
    "Llama",
    "LlamaCache",
    "LlamaDiskCache",
    "LlamaGrammar",
    "LlamaRAMCache",
    "LlamaState",
    "LogitsProcessorList",
    "StoppingCriteriaList",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("pyggml")
    if name in _HOMES:
        return getattr(import_module(f"pyggml.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'pyggml' has no attribute {name!r}")
