"""How long a reply may reason: after so many tokens the end of reasoning is drawn, whatever the logits say.

Owns the watch over a reply's tokens (llama.cpp: common/reasoning-budget.cpp).
"""

import codecs
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pyggml.errors import SamplerError

Tokens = tuple[int, ...]
ENDLESS = (1 << 31) - 1  # tokens: what llama.cpp takes where none are said (common/sampling.cpp: INT_MAX)


@dataclass(frozen=True)
class BudgetParams:
    """tokens   that reasoning may have, 0: none
    start    what begins it
    ends     each of which ends it
    forced   what is drawn when it was long enough: a message, and the first of `ends`
    written  what the prompt has of the reply already
    """

    tokens: int
    start: Tokens
    ends: tuple[Tokens, ...]
    forced: Tokens
    written: Tokens = ()

    def __post_init__(self) -> None:
        if self.tokens < 0 or not self.start or not self.forced or not all(self.ends):
            raise SamplerError(f"a budget of {self.tokens} tokens needs what begins reasoning, and what ends it")


def budget_of(
    marks: tuple[Tokens, tuple[Tokens, ...], Tokens] | None, tokens: int, said: Sequence[int], controlled: bool = False
) -> BudgetParams | None:
    """Of a reply whose reasoning has these `marks` (start, ends, what the prompt has of the reply); `said` are the tokens of
    what is written before it is ended. None without marks, and for fewer than 0 tokens, which are no limit: unless the
    reasoning is to be `controlled` (`Budget.end`)."""
    if marks is None or (tokens < 0 and not controlled):
        return None
    start, ends, written = marks
    return BudgetParams(tokens if tokens >= 0 else ENDLESS, start, ends, (*said, *ends[0]), written)


class Budget:
    """`accept` hears the reply's tokens; `wanted` is the token that must come next, None: any.

    A character that is not complete is waited for. Each part of a reply that reasons has the whole budget.
    """

    def __init__(self, params: BudgetParams, token_bytes: Callable[[int], bytes]) -> None:
        self.params, self._bytes = params, token_bytes
        self._longest = max(map(len, (params.start, *params.ends)))
        self.reset()

    def reset(self) -> None:
        """To the beginning of a reply."""
        self._tail: list[int] = []
        self._left: int | None = None  # tokens, while reasoning goes on
        self._forced = 0  # tokens of `forced` that are yet to come
        self._text = codecs.getincrementaldecoder("utf-8")("replace")
        for token in self.params.written:
            self._mark(token)
        self._end_if_used_up()

    def clone(self) -> "Budget":
        """One that goes on alike and independently."""
        other = copy.copy(self)
        other._tail = list(self._tail)
        other._text = codecs.getincrementaldecoder("utf-8")("replace")
        other._text.setstate(self._text.getstate())
        return other

    @property
    def wanted(self) -> int | None:
        """The token that must come next."""
        return self.params.forced[-self._forced] if self._forced else None

    def end(self) -> bool:
        """Reasoning that goes on ends here, as if its tokens were used up. Whether there was any to end
        (common_reasoning_budget_force; a character that is not complete is waited for, as where the budget ends)."""
        if not self._left:
            return False
        self._left = 0
        self._end_if_used_up()
        return True

    def accept(self, token: int) -> None:
        """The token has come."""
        if self._forced:
            self._forced -= 1
            return
        counting = self._left is not None
        self._mark(token)
        if counting and self._left is not None:
            self._left -= 1
            self._text.decode(self._bytes(token))
        self._end_if_used_up()

    def _mark(self, token: int) -> None:
        """Whether reasoning begins or ends with this token."""
        self._tail = [*self._tail, token][-self._longest :]
        if self._left is None and self._is(self.params.start):
            self._left, self._tail = self.params.tokens, []
            self._text.reset()
        elif self._left is not None and any(map(self._is, self.params.ends)):
            self._left, self._tail = None, []

    def _is(self, tokens: Sequence[int]) -> bool:
        return self._tail[-len(tokens) :] == list(tokens)

    def _end_if_used_up(self) -> None:
        if self._left is not None and self._left <= 0 and not self._text.getstate()[0]:
            self._left, self._tail, self._forced = None, [], len(self.params.forced)
