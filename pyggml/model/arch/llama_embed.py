"""llama-embed: llama, of which nothing is kept and whose tokens see each other unless the file says otherwise
(llama.cpp: models/llama-embed.cpp, llama.cpp)."""

from pyggml.model.arch.llama import Block
from pyggml.model.encoder import Encoder


class Model(Encoder):
    block = Block
    ignored = ("output.weight",)

    def causal(self) -> bool:
        """As the file says: it has a cache there, although no node reads it, and so goes through llama_context::decode."""
        return self.hp.pooled.causal
