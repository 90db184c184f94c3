"""pyggml: ggml in pure Python. `from pyggml import Llama`; importing the package alone loads nothing else."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyggml.engine import Llama
    from pyggml.grammar import LlamaGrammar

__all__ = ["Llama", "LlamaGrammar"]


def __getattr__(name: str) -> Any:
    if name == "Llama":
        from pyggml.engine import Llama

        return Llama
    if name == "LlamaGrammar":
        from pyggml.grammar import LlamaGrammar

        return LlamaGrammar
    raise AttributeError(f"module 'pyggml' has no attribute {name!r}")
