"""starcoder: gpt2 with one head of keys and values."""

from pyggml.model.arch.gpt2 import Model as Model
