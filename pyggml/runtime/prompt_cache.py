"""The state of a prompt, and of all the text if wanted, in a file from run to run.

Owns when a state is read and written, as llama.cpp's completion tool does it (tools/completion/completion.cpp).
"""

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pyggml.prefix import common_prefix
from pyggml.runtime.slot import Slot

if TYPE_CHECKING:
    from pyggml.runtime.context import Context
    from pyggml.runtime.state_base import SavedState


class PromptCache:
    """`tokens` are those of the file, if there is one; without a path nothing is ever done."""

    def __init__(
        self,
        context: "Context",
        path: str | None,
        *,
        read_only: bool = False,
        whole_text: bool = False,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Read the file. `tell` is called with a line on what it holds. Raises StateError when it is damaged or belongs to
        something else."""
        from pyggml.runtime import state

        self.path = path
        self.writes = path is not None and not read_only
        self.whole_text = self.writes and whole_text
        self._context = context
        self._tell = tell
        self._state: SavedState | None = None
        self._n_common = 0
        self.tokens: list[int] = []
        if path is not None and os.path.exists(path) and os.path.getsize(path):
            self._state = state.load(path)
            self._state.check(context)
            self.tokens = self._state.tokens.tolist()

    def resume(self, slot: Slot, tokens: Sequence[int]) -> None:
        """Let a slot of the context begin with what the file and `tokens` have in common; the last one is left over. Where the
        context can go back to fewer, it begins with those."""
        if self._state is None:
            return
        self._n_common = common_prefix(tokens, self.tokens)
        n = min(self._n_common, len(tokens) - 1)
        reached = self._state.restore(self._context, n)
        slot.tokens = list(tokens[:reached])
        slot.checkpoints.take(self._state.checkpoints(self._context, reached))
        less = "" if reached == n else f", of which {reached} can be gone on from"
        self._tell(f"{self.path}: holds {self._n_common} of {len(tokens)} tokens of the prompt{less}")

    def keep_prompt(self, slot: Slot, tokens: Sequence[int]) -> None:
        """Once the prompt is decoded: write it, if the file does not hold all of it already, and nothing of it is forgotten."""
        if self.writes and self._n_common < len(tokens) and not slot.forgotten:
            self._save(slot, tokens)

    def keep_all(self, slot: Slot) -> None:
        """At the end: write prompt and text, unless some of it is forgotten."""
        if self.whole_text and slot.tokens and not slot.forgotten:
            self._save(slot, slot.tokens)

    def _save(self, slot: Slot, tokens: Sequence[int]) -> None:
        from pyggml.runtime.state import save

        assert self.path is not None
        self._state = None  # it may be mapped from the file that is replaced now
        save(self._context, tokens, self.path, checkpoints=slot.checkpoints.kept)
