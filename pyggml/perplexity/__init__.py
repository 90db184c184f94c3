"""How surprised a model is by a text: perplexity, and divergence from another model's predictions.

Owns the names that other packages use; knows no command line. The definitions are those of llama-perplexity.
"""

from pyggml.perplexity.base_file import BaseFile, BaseWriter
from pyggml.perplexity.divergence import Divergence
from pyggml.perplexity.losses import Losses, Scored, count_chunks, losses_of, score

__all__ = ["BaseFile", "BaseWriter", "Divergence", "Losses", "Scored", "count_chunks", "losses_of", "score"]
