"""`--context-shift` and `--keep`: a full context goes on without the older half of what is not to be kept.

Owns when tokens are forgotten and how many, as llama.cpp's completion tool does it (tools/completion/completion.cpp);
must not know how cells move (pyggml/model/shift.py).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pyggml_cli.flags import Values

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pyggml.model.context import Context


class ContextShift:
    """`forgotten` tokens, those behind the first `n_keep`, are no longer in the context."""

    def __init__(self, values: Values, context: "Context", prompt: Sequence[int], adds_bos: bool) -> None:
        """`adds_bos`: whether the tokenizer puts a BOS token before a text; it is kept whatever --keep says."""
        self.on = bool(values.context_shift) and values.n_predict != -2
        kept: int = values.keep
        self.n_keep = len(prompt) if kept < 0 or kept > len(prompt) else kept + adds_bos
        self.forgotten = 0
        self._context = context

    def full(self) -> str:
        """What to tell when there is no room."""
        hint = "" if self.on else "; with --context-shift it goes on without the oldest"
        return f"[context full: {self._context.n_ctx} tokens{hint}]"

    def make_room(self, n: int) -> bool:
        """Whether `n` further tokens fit, perhaps because others are forgotten now."""
        context = self._context
        while context.n_past + n >= context.n_ctx:
            n_discard = (context.n_past - self.n_keep) // 2
            if not self.on or n_discard < 1:
                return False
            context.shift(self.n_keep, n_discard)
            self.forgotten += n_discard
        return True

    def go_back(self, n: int) -> int:
        """Keep the first `n` tokens of the text, or so many of them as can still be gone back to; how many those are."""
        if n < self.n_keep + self.forgotten:
            n, self.forgotten = min(n, self.n_keep) if self.forgotten else n, 0
        self._context.truncate(n - self.forgotten)
        return n

    def decode(self, tokens: Sequence[int]) -> "NDArray[Any] | None":
        """The logits after the last of these tokens; None when there is no room for them."""
        context, logits, step = self._context, None, len(tokens)
        if self.on and context.n_past + step >= context.n_ctx:
            step = max(1, (context.n_ctx - self.n_keep) // 4)  # so much room there always is
        for at in range(0, len(tokens), step):
            part = tokens[at : at + step]
            if not self.make_room(len(part)):
                return None
            logits = context.decode(part)[-1]
        return logits
