"""`--prompt-cache FILE`: the state of the prompt, and of all the text with --prompt-cache-all, from run to run.

Owns when a state is read and written, as llama.cpp's completion tool does it (tools/completion/completion.cpp); must
not know the file's format (pyggml/model/state.py).
"""

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pyggml_cli.flags import Values

if TYPE_CHECKING:
    from pyggml.model.context import Context


class PromptCache:
    """Nothing is done where the flag was not given. `tokens` are those of the file, if there is one."""

    def __init__(self, values: Values, context: "Context") -> None:
        """Read the file. Raises StateError when it is damaged or belongs to something else."""
        from pyggml.model.state import State

        self.path: str | None = values.prompt_cache
        self.writes = self.path is not None and not values.prompt_cache_ro
        self.all = self.writes and bool(values.prompt_cache_all)
        self._context = context
        self._state: State | None = None
        self._n_common = 0
        self.tokens: list[int] = []
        if self.path is not None and os.path.exists(self.path) and os.path.getsize(self.path):
            self._state = State.load(self.path)
            self._state.check(context)
            self.tokens = self._state.tokens.tolist()

    def resume(self, tokens: Sequence[int]) -> None:
        """Let the context begin with what the file and `tokens` have in common; the last token is always left over."""
        if self._state is None:
            return
        pairs = zip(tokens, self.tokens, strict=False)
        self._n_common = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(tokens), len(self.tokens)))
        self._state.restore(self._context, min(self._n_common, len(tokens) - 1))
        print(f"{self.path}: holds {self._n_common} of {len(tokens)} tokens of the prompt", file=sys.stderr)

    def keep_prompt(self, tokens: Sequence[int]) -> None:
        """Once the prompt is decoded: write it, if the file does not hold all of it already."""
        if self.writes and self._n_common < len(tokens):
            self._save(tokens)

    def keep_all(self, tokens: Sequence[int]) -> None:
        """At the end: write prompt and text; `tokens` may be more than those decoded."""
        if self.all and tokens:
            self._save(tokens[: self._context.n_past])

    def _save(self, tokens: Sequence[int]) -> None:
        from pyggml.model.state import save

        assert self.path is not None
        self._state = None  # it may be mapped from the file that is replaced now
        save(self._context, tokens, self.path)
