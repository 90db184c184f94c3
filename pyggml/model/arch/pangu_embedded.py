"""pangu-embedded: llama with rotary positions on the halves of a head, and biases, which is qwen2
(llama.cpp: models/pangu-embed.cpp)."""

from pyggml.model.arch.qwen2 import Model as Model
