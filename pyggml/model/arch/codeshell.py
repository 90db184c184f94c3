"""codeshell: starcoder2 (llama.cpp: models/codeshell.cpp)."""

from pyggml.model.arch.starcoder2 import Model as Model
