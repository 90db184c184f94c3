"""Prompts of ended texts, kept outside the context until one comes that begins alike, within a limit of memory.

Owns which are kept and which are found (llama-server's server_prompt_cache: tools/server/server-task.cpp); what a context remembers of
a prompt is bytes here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pyggml.prefix import common_prefix
from pyggml.runtime.slot import reusable

if TYPE_CHECKING:
    from pyggml.memory.base import Checkpoint
    from pyggml.model.lora import Applied

LEAST_KEPT = 0.25
"""Of a stored prompt so much must be wanted: a long one is not given up for a few tokens."""


@dataclass(eq=False)
class Kept:
    """What a slot had: `bodies` are what each part of the memory dumps."""

    tokens: list[int]
    forgotten: int
    bodies: list[bytes]
    checkpoints: list[Checkpoint]
    adapters: tuple[Applied, ...] | None
    n_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.n_bytes = sum(map(len, self.bodies)) + sum(_size(one) for one in self.checkpoints)

    def would_keep(self, tokens: Sequence[int]) -> int:
        """How many of these tokens need not be computed, if the memory can go back to any."""
        return reusable(tokens, self.tokens)


def _size(checkpoint: Checkpoint) -> int:
    data = checkpoint.data
    if isinstance(data, list):
        return sum(_size(one) for one in data if one is not None)
    return len(data)


class IdlePrompts:
    """limit  bytes; None: no limit"""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self._kept: list[Kept] = []  # the oldest first

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def n_bytes(self) -> int:
        """Of all that is kept."""
        return sum(one.n_bytes for one in self._kept)

    def has(self, tokens: Sequence[int], adapters: tuple[Applied, ...] | None) -> bool:
        """Whether one that is kept begins with all of these."""
        return any(one.adapters == adapters and common_prefix(one.tokens, tokens) == len(tokens) for one in self._kept)

    def keep(self, kept: Kept) -> bool:
        """False where it is larger than the limit. Those that are a beginning of it go, and then the oldest until it fits."""
        if self.limit is not None and kept.n_bytes > self.limit:
            return False
        self._kept = [
            one
            for one in self._kept
            if one.adapters != kept.adapters or common_prefix(one.tokens, kept.tokens) < len(one.tokens)
        ]
        self._kept.append(kept)
        while self.limit is not None and self.n_bytes > self.limit:
            del self._kept[0]
        return True

    def find(self, tokens: Sequence[int], adapters: tuple[Applied, ...] | None) -> Kept | None:
        """The one that has most of these tokens, of those of which enough is wanted."""
        found, most = None, 0
        for one in self._kept:
            n = one.would_keep(tokens)
            if one.adapters == adapters and n > most and n >= LEAST_KEPT * len(one.tokens):
                found, most = one, n
        return found

    def take(self, kept: Kept) -> Kept:
        """It is kept no more."""
        self._kept.remove(kept)
        return kept

    def clear(self) -> None:
        """Nothing is kept any more."""
        self._kept.clear()
