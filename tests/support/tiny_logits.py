"""What a tiny model says to fixed tokens."""

import numpy as np
from tiny_model import N_VOCAB

from pyggml.backend.reference import ReferenceDevice
from pyggml.model.model import Model
from pyggml.runtime.context import Context

TOKENS = [int(t) for t in np.random.default_rng(3).integers(0, N_VOCAB, 40)]


def run(path, tokens, device=None, n_ctx=512, n_ubatch=16, **options):
    """Logits of all tokens, computed by `device`, or else by the reference backend. Options are `Context`'s."""
    model = Model.load(path, cpu=device or ReferenceDevice())
    context = Context(model, n_ctx=n_ctx, n_ubatch=n_ubatch, **options)
    out = context.decode(tokens, logits="all")
    context.close()
    model.close()
    return out
