"""Which tokens may come next: their texts against a grammar, all at once or a single one.

Owns the decoding of UTF-8 that is cut in the middle, the trie of a vocabulary's texts, and the masks. Rules: llama.cpp,
src/llama-grammar.cpp, llama_grammar_apply_impl and llama_grammar_accept_impl.
"""

import copy
import weakref
from collections.abc import Iterator, Sequence, Set
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pyggml.errors import GrammarError
from pyggml.grammar.matcher import Matcher, State
from pyggml.grammar.parser import parse
from pyggml.grammar.rules import Grammar

_LENGTHS = (1,) * 8 + (0,) * 4 + (2, 2, 3, 4)  # bytes of a character, by the upper half of its first
_MAX_MASKS = 200  # remembered at a time

Partial = tuple[int, int]
"""A character cut in the middle: its bits so far, and the bytes still to come; -1 of these: no UTF-8."""

WHOLE: Partial = (0, 0)


class Vocabulary(Protocol):
    """A part of pyggml.tokenizer.Tokenizer."""

    @property
    def n_vocab(self) -> int:
        """The number of tokens."""

    @property
    def eog_ids(self) -> Set[int]:
        """The tokens that end a generation."""

    def token_bytes(self, token: int, special: bool = True) -> bytes:
        """What the token adds to the text."""

    def encode(self, text: str | bytes, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """The tokens of a text."""


def decode_utf8(data: bytes, partial: Partial = WHOLE) -> tuple[list[int], Partial]:
    """The code points of `data` that follows `partial`, and what remains incomplete at its end.

    As llama.cpp's decode_utf8: a byte 0 ends it, bytes after the first one of a character are not checked.
    """
    data = data.split(b"\0")[0]
    out: list[int] = []
    value, remain = partial
    i = 0
    while i < len(data) and remain > 0:
        if data[i] >> 6 != 2:
            return [], (0, -1)
        value = (value << 6) + (data[i] & 0x3F)
        i, remain = i + 1, remain - 1
    if partial[1] > 0 and remain == 0:
        out.append(value)
    while i < len(data):
        remain = _LENGTHS[data[i] >> 4] - 1
        if remain < 0:
            return [], (0, -1)
        value = data[i] & ((1 << (7 - remain)) - 1)
        i += 1
        while i < len(data) and remain > 0:
            value = (value << 6) + (data[i] & 0x3F)
            i, remain = i + 1, remain - 1
        if remain == 0:
            out.append(value)
    return out, (value if remain else 0, remain)


def _partial_fits(state: State, partial: Partial) -> bool:
    """Whether a character that begins so may come (llama_grammar_match_partial_char)."""
    value, remain = partial
    if remain < 0 or (remain == 1 and value < 2):
        return False
    low = value << (remain * 6)
    high = low | ((1 << (remain * 6)) - 1)
    if low == 0:
        low = {2: 1 << 11, 3: 1 << 16}.get(remain, 0)
    return any(chars.matches_some(low, high) for chars, _ in state.chars)


class _Node:
    """The tokens whose text ends here, and those that end with a part of the next character; () for none."""

    __slots__ = ("children", "partials", "tokens")

    def __init__(self) -> None:
        self.children: dict[int, _Node] = {}
        self.tokens: Sequence[int] = ()
        self.partials: Sequence[tuple[Partial, int]] = ()


class _Trie:
    """The texts of a vocabulary, by code points. Tokens without text, and those that end a text, are not in it."""

    def __init__(self, vocab: Vocabulary) -> None:
        self.root = _Node()
        self.eog = np.array(sorted(vocab.eog_ids), np.int64)
        eog = vocab.eog_ids
        self.continuing: list[tuple[int, bytes]] = []  # tokens that may complete a character
        for token in range(vocab.n_vocab):
            if token in eog:
                continue
            data = vocab.token_bytes(token)
            if not data or data[0] == 0:
                continue
            if data[0] >> 6 == 2:
                self.continuing.append((token, data))
                continue
            code_points: Sequence[int]
            code_points, partial = (data, WHOLE) if data.isascii() and b"\0" not in data else decode_utf8(data)
            if partial[1] < 0:
                continue
            node = self.root
            for code_point in code_points:
                child = node.children.get(code_point)
                if child is None:
                    child = node.children[code_point] = _Node()
                node = child
            if partial[1]:
                node.partials = [*node.partials, (partial, token)]
            else:
                node.tokens = [*node.tokens, token]


_tries: "weakref.WeakKeyDictionary[Vocabulary, _Trie]" = weakref.WeakKeyDictionary()


def _trie(vocab: Vocabulary) -> _Trie:
    trie = _tries.get(vocab)
    if trie is None:
        trie = _tries[vocab] = _Trie(vocab)
    return trie


class GrammarState:
    """A text in progress, held to a grammar: which tokens may come, and the one that came.

    Tokens that end a generation may come where the grammar's text may end. Raises GrammarError.
    """

    def __init__(self, grammar: Grammar | str, vocab: Vocabulary) -> None:
        if isinstance(grammar, str):
            grammar = parse(grammar, token_of=lambda text: vocab.encode(text, False, True))
        self.vocab = vocab
        self._matcher = Matcher(grammar)
        self._state = self._matcher.start
        self._partial = WHOLE
        self._cached: list[State] = []  # states that hold a mask

    @property
    def may_end(self) -> bool:
        """Whether the text may end here."""
        return self._state.may_end and self._partial == WHOLE

    def reset(self) -> None:
        """Back to the beginning."""
        self._state, self._partial = self._matcher.start, WHOLE

    def clone(self) -> "GrammarState":
        """A state that goes on alike and independently; both share what they learn of the grammar."""
        return copy.copy(self)

    def allows(self, token: int) -> bool:
        """Whether this token may come: as `mask`, for one."""
        self._matcher.begin(self._state)
        if token in self.vocab.eog_ids:
            return self.may_end
        data = self.vocab.token_bytes(token)
        if not data or data[0] == 0:
            return False
        return self._fits(token, data)

    def mask(self) -> NDArray[np.bool_]:
        """(n_vocab,): which tokens may come. Not to be written to."""
        self._matcher.begin(self._state)
        key = self._partial
        found = self._state.masks.get(key)
        if found is None:
            if len(self._cached) >= _MAX_MASKS:
                for state in self._cached:
                    state.masks.clear()
                self._cached.clear()
            found = self._state.masks[key] = self._mask()
            self._cached.append(self._state)
        assert isinstance(found, np.ndarray)
        return found

    def accept(self, token: int) -> None:
        """The token has come. Raises GrammarError if it may not; the state stays as it was then."""
        fitting = self.allows(token)
        if token in self.vocab.eog_ids:
            if not fitting:
                raise GrammarError(f"grammar: token {token} ends the text, which is not complete")
            return
        code_points, partial = decode_utf8(self.vocab.token_bytes(token), self._partial)
        states = [self._walk(code_points)]
        if self._state.tokens:
            states.append(self._matcher.advance_token(self._state, token))
        state = self._matcher.union(states)
        if state is None or not fitting:
            text = self.vocab.token_bytes(token).decode("utf-8", "replace")
            raise GrammarError(f"grammar: token {token} ({text!r}) does not fit here")
        self._state, self._partial = state, partial

    def accept_bytes(self, data: bytes) -> bool:
        """A text has come, of whatever tokens; False, and nothing is changed, if it does not fit."""
        code_points, partial = decode_utf8(data, self._partial)
        self._matcher.begin(self._state)
        state = self._walk(code_points)
        if state is None or (partial != WHOLE and not _partial_fits(state, partial)):
            return False
        self._state, self._partial = state, partial
        return True

    def _walk(self, code_points: list[int]) -> State | None:
        state: State | None = self._state
        for code_point in code_points:
            if state is None:
                return None
            state = self._matcher.advance(state, code_point)
        return state

    def _fits(self, token: int, data: bytes) -> bool:
        code_points, partial = decode_utf8(data, self._partial)
        by_id = any(element.matches(token) for element, _ in self._state.tokens)
        if by_id and code_points:
            return True
        state = self._walk(code_points)
        if state is None:
            return False
        return partial == WHOLE or _partial_fits(state, partial)

    def _mask(self) -> NDArray[np.bool_]:
        trie = _trie(self.vocab)
        allowed = np.zeros(self.vocab.n_vocab, np.bool_)
        if self.may_end:
            allowed[trie.eog] = True
        if self._state.tokens:  # by their numbers: rare, and not worth a shorter way
            for token in range(self.vocab.n_vocab):
                if token not in self.vocab.eog_ids:
                    allowed[token] = self._fits_by_id(token)
        if self._partial != WHOLE:
            for token, data in trie.continuing:
                allowed[token] = self._fits(token, data)
            return allowed
        fitting: list[int] = []
        for node, state in self._nodes(trie.root):
            fitting += node.tokens
            fitting += [token for partial, token in node.partials if _partial_fits(state, partial)]
        allowed[fitting] = True
        return allowed

    def _fits_by_id(self, token: int) -> bool:
        data = self.vocab.token_bytes(token)
        hit = any(element.matches(token) for element, _ in self._state.tokens)
        return hit and bool(data) and data[0] != 0 and bool(decode_utf8(data, self._partial)[0])

    def _nodes(self, root: _Node) -> Iterator[tuple[_Node, State]]:
        """The nodes of the trie that can be reached, with the state there."""
        advance = self._matcher.advance
        todo = [(root, self._state)]
        while todo:
            node, state = todo.pop()
            yield node, state
            if not state.chars:
                continue
            for code_point, child in node.children.items():
                following = advance(state, code_point)
                if following is not None:
                    todo.append((child, following))
