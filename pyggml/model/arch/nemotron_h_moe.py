"""nemotron_h_moe: nemotron_h with experts (llama.cpp: models/nemotron-h-moe.cpp)."""

from pyggml.model.arch.nemotron_h import Model as Model
