"""llama_cpp.llama_tokenizer: the model file's tokenizer, and those of transformers."""

from pyggml.api.tokenizers import BaseLlamaTokenizer, LlamaHFTokenizer, LlamaTokenizer

__all__ = ["BaseLlamaTokenizer", "LlamaHFTokenizer", "LlamaTokenizer"]
