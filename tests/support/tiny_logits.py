"""What a tiny model says to fixed tokens, and how far two engines' answers are apart. Must not know who is compared."""

import numpy as np
from tiny_model import N_VOCAB

from pyggml.backend.reference import ReferenceDevice
from pyggml.model.model import Model
from pyggml.runtime.context import Context

TOKENS = [int(t) for t in np.random.default_rng(3).integers(0, N_VOCAB, 40)]


def run(path, tokens, **options):
    """Logits of all tokens, computed by the reference backend."""
    model = Model.load(path, cpu=ReferenceDevice())
    context = Context(model, n_ctx=512, n_ubatch=16, **options)
    out = context.decode(tokens, logits="all")
    context.close()
    model.close()
    return out


def kl_each(theirs, ours):
    """KL(theirs || ours) of each token, in nats."""
    a, b = (x.astype(np.float64) - np.logaddexp.reduce(x.astype(np.float64), -1, keepdims=True) for x in (theirs, ours))
    return (np.exp(a) * (a - b)).sum(-1)


def kl(theirs, ours):
    """The mean over tokens."""
    return float(kl_each(theirs, ours).mean())
