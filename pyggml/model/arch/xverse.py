"""xverse: internlm2 (llama.cpp: models/xverse.cpp)."""

from pyggml.model.arch.internlm2 import Model as Model
