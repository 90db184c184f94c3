"""The names of the package llama_cpp (llama-cpp-python 0.3.36), which its users import.

Owns names alone: what they do is pyggml.api's. Its C API is not here: llama_cpp.py says which of it is.
"""

from pyggml.compat.llama_cpp import llama_cpp
from pyggml.compat.llama_cpp.llama import *  # noqa: F403
from pyggml.compat.llama_cpp.llama_cpp import *  # noqa: F403
from pyggml.compat.llama_cpp.llama_types import *  # noqa: F403

__version__ = "0.3.36"  # of llama-cpp-python, whose names these are


def __getattr__(name: str) -> object:
    return getattr(llama_cpp, name)
