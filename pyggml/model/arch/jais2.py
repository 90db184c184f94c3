"""jais2: nemotron, whose heads may be turned whole (llama.cpp: models/jais2.cpp)."""

from pyggml.model.arch.nemotron import Model as Model
