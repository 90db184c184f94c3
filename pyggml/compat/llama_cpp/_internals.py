"""llama_cpp._internals: classes over the C API. None is here; asking for one says so."""

from pyggml.compat.llama_cpp.llama_cpp import NOT_HERE


def __getattr__(name: str) -> object:
    raise AttributeError(f"llama_cpp._internals.{name}: {NOT_HERE}")
