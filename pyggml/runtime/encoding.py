"""Texts that an encoder reads, for a decoder to answer (llama-context.cpp: encode).

Owns what a context does for that, beside `decode`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pyggml.errors import ComputeError, ContextError
from pyggml.memory.encoded import Encoded
from pyggml.memory.ubatch import Ubatch
from pyggml.model.graph import UbatchShape, Wanted

if TYPE_CHECKING:
    from pyggml.memory.layered import Layered
    from pyggml.model.model import Model


class Encodes(Protocol):
    """What is asked of a Context."""

    model: Model
    n_ubatch: int
    n_seq_max: int

    @property
    def memory(self) -> Layered:
        """What it remembers."""

    @property
    def encodes(self) -> bool:
        """Whether there is an encoder."""

    def begin(self) -> None:
        """What comes before each call that computes."""

    def compute(self, ub: Ubatch, shape: UbatchShape, placement: Any) -> NDArray[np.float32] | None:
        """Run a micro-batch's graph."""


def encode(context: Encodes, ids: NDArray[np.int32], seq: int) -> None:
    """`Context.encode`."""
    if not context.encodes:
        raise ContextError(f"a {context.model.config.architecture} model has no encoder")
    if not 0 <= seq < context.n_seq_max:
        raise ContextError(f"sequence {seq}: there are {context.n_seq_max}, numbered from 0")
    if why := why_not(context, ids.size):
        raise ContextError(why)
    bad = np.flatnonzero((ids < 0) | (ids >= context.model.n_vocab))
    if bad.size:
        raise ComputeError(f"token {ids[bad[0]]} is outside the vocabulary of {context.model.n_vocab}")
    texts = _texts(context)
    texts.encoded(seq, ())
    context.memory.remove(seq)
    context.begin()
    pos = np.arange(ids.size, dtype=np.int32)
    ub = Ubatch(ids, pos, np.full(ids.size, seq, np.int32), np.ones(ids.size, np.bool_))
    context.compute(ub, shape(context, ids.size), None)
    texts.encoded(seq, ids.tolist())


def why_not(context: Encodes, n_tokens: int) -> str:
    """Why a text of so many tokens cannot be read; empty: it can."""
    if 0 < n_tokens <= context.n_ubatch:
        return ""
    return f"a text of {n_tokens} tokens: an encoder reads 1 to {context.n_ubatch} at once (n_ubatch)"


def shape(context: Encodes, n_tokens: int) -> UbatchShape:
    """Of a text, which reads nothing of what is remembered."""
    parts = (0,) * len(context.memory.parts)
    return UbatchShape(n_tokens, n_tokens, parts, wanted=Wanted(causal=False, encodes=True))


def check(context: Encodes, seqs: Sequence[int]) -> None:
    """Raises ContextError where one of these sequences is to answer, and has no text."""
    for seq in seqs if context.encodes else ():
        if not _texts(context).texts[seq]:
            what = f"a {context.model.config.architecture} model answers a text"
            raise ContextError(f"sequence {seq}: {what}, and none has been encoded")


def text_of(context: Encodes, seq: int) -> tuple[int, ...]:
    """The tokens of the text that a sequence answers; none: nothing is encoded."""
    return _texts(context).texts[seq] if context.encodes else ()


def _texts(context: Encodes) -> Encoded:
    (part,) = (part for part in context.memory.parts if isinstance(part, Encoded))
    return part
