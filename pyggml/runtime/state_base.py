"""What saved states of all versions have in common: which model and adapters they belong to, their tokens, the digest.

Owns these checks. The fingerprint is that of the model file, of the hyper-parameters and of the adapters in use: keys
and values of another model would be nonsense here.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyggml.errors import StateError

if TYPE_CHECKING:
    from pyggml.memory.base import Checkpoint
    from pyggml.model.lora import Applied
    from pyggml.model.model import Model
    from pyggml.runtime.context import Context

MAGIC = b"PYGGMLKV"
DIGEST = 32


def fingerprint(model: Model, adapters: Sequence[Applied] = ()) -> bytes:
    """32 bytes that tell models apart: of the file, of the hyper-parameters, which may have been overridden, and of adapters
    and their scales, in whatever order."""
    digest = hashlib.sha256(model.file.fingerprint())
    digest.update(model.config.text().encode())
    for one in sorted(applied.adapter.digest + np.float32(applied.scale).tobytes() for applied in adapters):
        digest.update(one)
    return digest.digest()


class SavedState(ABC):
    """What was saved: `tokens` (n,) i32 and, behind `restore`, what was remembered of them. `head`: a record with n_adapters
    and fingerprint; `name` is what errors call it."""

    def __init__(self, name: str, head: Any, tokens: NDArray[np.int32]) -> None:
        self.name, self.head, self.tokens = name, head, tokens

    def check(self, context: Context) -> None:
        """Raises StateError when the state is not one of such a context."""
        there, here = int(self.head["n_adapters"]), len(context.adapters)
        if there != here:
            raise StateError(f"{self.name}: was computed with {there} adapters, {here} are in use")
        if bytes(self.head["fingerprint"]) != fingerprint(context.model, context.adapters):
            raise StateError(
                f"{self.name}: belongs to another model" + (", or to other adapters or scales" if here else "")
            )
        self.check_memory(context)
        bad = np.flatnonzero((self.tokens < 0) | (self.tokens >= context.model.n_vocab))
        if bad.size:
            raise StateError(
                f"{self.name}: damaged: token {self.tokens[bad[0]]} is outside the vocabulary of {context.model.n_vocab}"
            )

    def restore(self, context: Context, n: int, seq: int = 0) -> int:
        """Let the first `n` tokens be those that a sequence of `context` has, or as many of them as there is something
        remembered of; how many those are. Raises StateError and what devices raise."""
        assert 0 <= n <= min(len(self.tokens), context.n_ctx_seq), (n, len(self.tokens), context.n_ctx_seq)
        self.check(context)
        context.memory.remove(seq)
        others = any(context.memory.end(other) for other in range(context.n_seq_max))
        if not others or context.computed_with != context.adapters:
            context.computed_with = None if others else context.adapters
        return self.fill(context, n, seq)

    @abstractmethod
    def check_memory(self, context: Context) -> None:
        """Raises StateError where the context remembers something else."""

    @abstractmethod
    def fill(self, context: Context, n: int, seq: int) -> int:
        """As `restore`, of a sequence that is empty and a state that is checked."""

    def checkpoints(self, context: Context, n: int) -> list[Checkpoint]:
        """Those of the sequence's first `n` tokens, the oldest first."""
        return []


def check_digest(raw: NDArray[np.uint8], name: str) -> None:
    """Raises StateError where bytes have changed."""
    if hashlib.blake2b(raw[:-DIGEST].data, digest_size=DIGEST).digest() != raw[-DIGEST:].tobytes():
        raise StateError(f"{name}: damaged: its digest does not match")
