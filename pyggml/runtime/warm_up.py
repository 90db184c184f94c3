"""What is done before the first text, so that it need not wait for it: kernels are compiled and linked, the weights read once.

Owns which micro-batches a batcher's steps may have, as far as their kernels differ: some of prompts, a token of each of several texts,
drafts, which are computed one by one.
"""

from collections.abc import Iterator

from pyggml import jit
from pyggml.model.graph import UbatchShape
from pyggml.runtime.batch import SIZES
from pyggml.runtime.context import Context
from pyggml.runtime.drafter import DRAFT_SIZES

PROMPTS = (2, 3, 4, 16)  # and the largest: tokens of a prompt's parts, whose kernels differ
COMPANY = (2, 4)  # tokens of each of several texts with drafts


def warm_up(context: Context, drafts: bool = False) -> None:
    """Make a context without tokens ready for any number of its texts; `drafts`: whose guesses are computed together. Raises
    DeviceError, ComputeError."""
    jit.wait(context.prepare_shapes(shapes(context, drafts)))
    if context.encodes:
        context.encode([0])
    context.decode([0])
    context.clear()


def shapes(context: Context, drafts: bool) -> Iterator[UbatchShape]:
    """Those of the first tokens; what is needed first comes last, as so many graphs are kept."""
    room = max(1, min(context.n_ubatch, context.n_ctx_seq - 1))
    streams, drafts = context.memory.n_streams, drafts and context.memory.rewinds
    yield context.shape(room, room, 0)
    for n in sorted({min(n, room) for n in (*PROMPTS, room)}, reverse=True):
        yield context.shape(n, n, 1)
    several = [n for n in SIZES if 1 < n <= min(context.n_seq_max, room)]
    for n in several if drafts and streams > 1 else ():
        for each in COMPANY:
            if n * each <= room:
                yield context.shape(n * each, each, n * each, n)._replace(one_by_one=True)
    for n in sorted({size + 1 for size in DRAFT_SIZES if size < room} if drafts else (), reverse=True):
        yield context.shape(n, n, n)._replace(one_by_one=True)
    for n in several:
        yield context.shape(n, 1, n, streams)
    yield context.shape(1, 1, 1)
