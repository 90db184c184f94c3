"""llama_cpp.llama_cache: states of texts, kept in memory or on disk."""

from pyggml.api.cache import BaseLlamaCache, LlamaCache, LlamaDiskCache, LlamaRAMCache

__all__ = ["BaseLlamaCache", "LlamaCache", "LlamaDiskCache", "LlamaRAMCache"]
