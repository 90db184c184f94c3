"""Checkpoints of one text in a memory that cannot go back to any token: when they are made, which are kept, which is gone back to.

Owns llama-server's rules for them (tools/server/server-context.cpp: create_checkpoint and update_slots).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyggml.memory.base import Checkpoint, Memory

NEAR = 4
"""Tokens before the end of a prompt where one is made, and once more so many before the last micro-batch: what comes next
often begins with all of a prompt but its last tokens."""


@dataclass(frozen=True)
class CheckpointRule:
    """most      checkpoints of one text; 0: none are made (--ctx-checkpoints)
    min_step  tokens between two, but for those at the end of a prompt and at its last message (--checkpoint-min-step)
    """

    most: int = 32
    min_step: int = 8192


class Checkpoints:
    """Those of sequence `seq`, the oldest first. Without a memory, or in one that rewinds, there are none."""

    def __init__(self, memory: Memory | None, seq: int, rule: CheckpointRule, n_ubatch: int) -> None:
        self._memory, self._seq, self._rule, self._n_ubatch = memory, seq, rule, n_ubatch
        self.active = memory is not None and not memory.rewinds and rule.most > 0
        self.kept: list[Checkpoint] = []
        self._fresh: set[int] = set()  # the ends of those that the present prompt has made

    def begin(self) -> None:
        """Another prompt comes."""
        self._fresh.clear()

    def next_stop(self, end: int, left: int, points: Sequence[int] = ()) -> int:
        """How many of the `left` tokens of a prompt are to come when the next checkpoint is made; 0: none is made any more.

        end     the position that the prompt will end at
        points  tokens that come from the beginning of each message of a user on: there too, where it is far enough from the
                last checkpoint, and before the last message
        """
        if not self.active:
            return 0
        last = min((p for p in points if p), default=0)
        wanted = {NEAR, NEAR + self._n_ubatch, last}
        wanted |= {point for point in points if self._far(end - point)}
        return max((stop for stop in wanted if stop < left), default=0)

    def _far(self, end: int) -> bool:
        return not self.kept or end > self.kept[-1].end + self._rule.min_step

    def mark(self) -> None:
        """Make one of the sequence as it is."""
        if not self.active:
            return
        assert self._memory is not None
        checkpoint = self._memory.checkpoint(self._seq)
        assert checkpoint is not None, "a memory that does not rewind"
        if not checkpoint.end:
            return
        self._make_room()
        self.kept = [*(c for c in self.kept if c.end != checkpoint.end), checkpoint]
        self._fresh.add(checkpoint.end)

    def _make_room(self) -> None:
        """Before there are too many, those of other prompts go that are near one before them; then the oldest."""
        if len(self.kept) + 1 >= self._rule.most:
            spaced: list[Checkpoint] = []
            for checkpoint in self.kept:
                near = bool(spaced) and checkpoint.end <= spaced[-1].end + self._rule.min_step
                if not near or checkpoint.end in self._fresh:
                    spaced.append(checkpoint)
            self.kept = spaced
        del self.kept[: max(0, len(self.kept) + 1 - self._rule.most)]

    def take(self, checkpoints: Sequence[Checkpoint]) -> None:
        """The sequence is another one, and has these, of which the newest are kept."""
        self._fresh.clear()
        self.kept = list(checkpoints)[-self._rule.most :] if self.active else []

    def before(self, n: int) -> Checkpoint | None:
        """The last one at which the sequence had at most `n` tokens."""
        return next((checkpoint for checkpoint in reversed(self.kept) if checkpoint.end <= n), None)

    def forget(self, n: int = 0) -> None:
        """The sequence has its first `n` tokens now: later ones are of a text that was left."""
        self.kept = [checkpoint for checkpoint in self.kept if checkpoint.end <= n]
        self._fresh = {end for end in self._fresh if end <= n}
