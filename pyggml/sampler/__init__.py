"""Sampling: from one row of logits to one token, stage by stage, as llama.cpp does it.

Owns the names that other packages import; must not know models, contexts or text.
Read in this order: `candidates` (the data), `stages` (what is done to it), `rng`, `params`, `chain`.
"""

from pyggml.sampler.candidates import Candidates
from pyggml.sampler.chain import SamplerChain
from pyggml.sampler.params import LLAMA_DEFAULT_SEED, SamplerParams, parse_logit_bias
from pyggml.sampler.stages import Stage
from pyggml.sampler.table import STAGES, samplers_from_chars, samplers_from_names
from pyggml.sampler.vocabulary import Vocabulary

__all__ = [
    "LLAMA_DEFAULT_SEED",
    "STAGES",
    "Candidates",
    "SamplerChain",
    "SamplerParams",
    "Stage",
    "Vocabulary",
    "parse_logit_bias",
    "samplers_from_chars",
    "samplers_from_names",
]
