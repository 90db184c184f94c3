"""A grammar that begins to hold once a word was written: calls of tools amid free text.

Owns the watch for that word; what follows is a GrammarState's. After the lazy grammars of llama.cpp
(src/llama-grammar.cpp, llama_grammar_accept_impl) and the reasoning during which none of them begins.
"""

import copy

import numpy as np
from numpy.typing import NDArray

from pyggml.grammar.trigger import Trigger
from pyggml.grammar.vocabulary import GrammarState, Vocabulary


class LazyGrammar:
    """As a GrammarState, which lets everything pass until the trigger was written. Raises GrammarError.

    Text that the grammar cannot begin with is no trigger.
    """

    def __init__(self, grammar: str, vocab: Vocabulary, trigger: Trigger) -> None:
        self.vocab = vocab
        self.trigger = trigger
        self._held = GrammarState(grammar, vocab)
        self._everything = np.ones(vocab.n_vocab, np.bool_)
        self.reset()

    def reset(self) -> None:
        """Back to the beginning."""
        self._held.reset()
        self.triggered = False
        self._silent = False
        self._fresh = True  # nothing but white space was written
        self._tail = b""  # what may be the beginning of a word
        if self.trigger.written:
            self._write(self.trigger.written.encode())

    def clone(self) -> "LazyGrammar":
        """A state that goes on alike and independently."""
        other = copy.copy(self)
        other._held = self._held.clone()
        return other

    @property
    def may_end(self) -> bool:
        """Whether the text may end here."""
        return not self.triggered or self._held.may_end

    def allows(self, token: int) -> bool:
        """Whether this token may come."""
        return not self.triggered or self._held.allows(token)

    def mask(self) -> NDArray[np.bool_]:
        """(n_vocab,): which tokens may come. Not to be written to."""
        return self._held.mask() if self.triggered else self._everything

    def accept(self, token: int) -> None:
        """The token has come."""
        if self.triggered:
            self._held.accept(token)
        elif token not in self.vocab.eog_ids:
            self._write(self.vocab.token_bytes(token))

    def _write(self, data: bytes) -> None:
        text = self._tail + data
        while True:
            found = self._next(text)
            if found is None:
                break
            at, word, kind = found
            if kind in ("word", "after"):
                begun = text[at:] if kind == "word" else text[at + len(word) :].lstrip()
                if self._held.accept_bytes(begun):
                    self.triggered = True
                    return
                text = text[at + len(word) :]
                continue
            self._silent = kind == "opening"
            text = text[at + len(word) :]
        longest = max((len(word) for word, _ in self._watched()), default=1)
        keep = text[-(longest - 1) :] if longest > 1 else b""
        if not self._silent:
            self._fresh = self._fresh and not text[: len(text) - len(keep)].strip()
        self._tail = keep

    def _watched(self) -> list[tuple[bytes, str]]:
        silent = self.trigger.silent
        if self._silent:
            assert silent is not None
            return [(silent[1].encode(), "closing")]
        watched = [(word.encode(), "word") for word in self.trigger.words]
        watched += [(self.trigger.after.encode(), "after")] if self.trigger.after else []
        watched += [(word.encode(), "start") for word in self.trigger.starts if self._fresh]
        return watched + ([(silent[0].encode(), "opening")] if silent is not None else [])

    def _next(self, text: bytes) -> tuple[int, bytes, str] | None:
        """The first of what is watched for."""
        best: tuple[int, bytes, str] | None = None
        for word, kind in self._watched():
            at = text.find(word)
            if at < 0 or (kind == "start" and text[:at].strip()):
                continue
            if best is None or at < best[0]:
                best = (at, word, "word" if kind == "start" else kind)
        return best
