"""GGUF model files, mapped and checked: `GGUFFile.open(path)` gives the metadata and the tensors' bytes in place.

Owns the names that other packages use; knows nothing of models, kernels or tokenizers.
"""

from pyggml.gguf.file import GGUFFile, TensorInfo
from pyggml.gguf.header import ValueType
from pyggml.gguf.strings import StringArray

__all__ = ["GGUFFile", "StringArray", "TensorInfo", "ValueType"]
