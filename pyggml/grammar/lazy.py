"""A grammar that holds only from a certain text on, as calls of tools do.

Owns waiting for that text.
"""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pyggml.errors import GrammarError
from pyggml.grammar.rules import Grammar
from pyggml.grammar.vocabulary import GrammarState, Vocabulary

LOOK_BACK = 256  # characters in which a trigger is sought, beside those that are anchored at the beginning


class LazyGrammar(GrammarState):
    """Any token may come until one of `triggers` (regular expressions) is found in the text; from its beginning on, or from
    that of its first group if it has one, the text is held to the grammar. Text that the grammar cannot begin with is no
    trigger."""

    def __init__(self, grammar: Grammar | str, vocab: Vocabulary, triggers: Sequence[str]) -> None:
        super().__init__(grammar, vocab)
        self._triggers = [re.compile(trigger) for trigger in triggers]
        self._said = b""
        self.holds = False

    @property
    def may_end(self) -> bool:
        return not self.holds or super().may_end

    def reset(self) -> None:
        super().reset()
        self._said, self.holds = b"", False

    def allows(self, token: int) -> bool:
        return not self.holds or super().allows(token)

    def mask(self) -> NDArray[np.bool_]:
        return super().mask() if self.holds else np.ones(self.vocab.n_vocab, np.bool_)

    def accept(self, token: int) -> None:
        if self.holds:
            super().accept(token)
            return
        if token in self.vocab.eog_ids:
            return
        self._said += self.vocab.token_bytes(token)
        text = self._said.decode("utf-8", "ignore")
        for trigger in self._triggers:
            found = trigger.search(text, max(0, len(text) - LOOK_BACK)) or (
                trigger.match(text) if len(text) < LOOK_BACK else None
            )
            if found is not None and self._begin(text[found.start(1 if trigger.groups else 0) :]):
                return

    def _begin(self, text: str) -> bool:
        self._matcher.begin(self._state)
        try:
            state = self._walk([ord(c) for c in text])
        except GrammarError:
            return False
        if state is not None:
            self._state, self.holds = state, True
        return state is not None
