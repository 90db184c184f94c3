"""Which characters may come next: a grammar as a machine that is built while it is used.

Owns stacks of positions, states (sets of stacks) and their limits. llama.cpp (src/llama-grammar.cpp) keeps a list of
stacks, each a list of positions, the topmost at a terminal. Here stacks share their lower parts, a set of stacks is a
state with a name, and where a character leads from a state is remembered: a text in a JSON string walks between two
states, whatever the vocabulary.
"""

from dataclasses import dataclass, field

from pyggml.errors import GrammarError
from pyggml.grammar.rules import Chars, Grammar, Ref, TokenId

MAX_STACKS = 5_000  # at once
MAX_STEPS = 1_000_000  # to look at, for one token drawn
MAX_MEMORY = 50_000  # stacks and states remembered
MAX_EDGES = 1_000_000  # characters whose way is remembered

Code = list[Chars | TokenId | tuple[int, ...] | None]


@dataclass(eq=False, slots=True)
class Stack:
    """What is left to match: position `pos`, then what is below. Two equal ones are the same object."""

    pos: int
    below: "Stack | None"


@dataclass(eq=False)
class State:
    """A set of stacks; None among them means that the text may end here."""

    stacks: frozenset[Stack | None]
    chars: list[tuple[Chars, list[Stack]]]  # what may come, and the stacks that it leads on from
    tokens: list[tuple[TokenId, Stack]]
    may_end: bool
    next_char: dict[int, "State | None"] = field(default_factory=dict)
    next_match: dict[tuple[bool, ...], "State | None"] = field(default_factory=dict)
    masks: dict[object, object] = field(default_factory=dict)  # for those who ask about many tokens


class Matcher:
    """The machine of a grammar; it has no position of its own and may serve many texts.

    Raises GrammarError where a grammar is so ambiguous that following it takes too much time or memory.
    """

    def __init__(self, grammar: Grammar) -> None:
        self.grammar = grammar
        self._code, starts = _flatten(grammar)
        self._stacks: dict[tuple[int, Stack | None], Stack] = {}
        self._states: dict[frozenset[Stack | None], State] = {}
        self._steps = self._n_edges = 0
        self.start = self._state(self._closure([self._push(pos, None) for pos in starts[grammar.root]]))

    def begin(self, state: State) -> None:
        """Starts counting the steps anew; when too much is remembered, all is forgotten but `state` and the start."""
        self._steps = 0
        if len(self._stacks) + len(self._states) > MAX_MEMORY or self._n_edges > MAX_EDGES:
            self._n_edges = 0
            self._stacks.clear()
            self._states.clear()
            for kept in (state, self.start):
                kept.next_char.clear()
                kept.next_match.clear()
                self._states[kept.stacks] = kept

    def advance(self, state: State, code_point: int) -> State | None:
        """Where this character leads, None if it may not come."""
        try:
            return state.next_char[code_point]
        except KeyError:
            pass
        self._count(len(state.chars))
        which = tuple(chars.matches(code_point) for chars, _ in state.chars)
        if which not in state.next_match:
            tops = [top for hit, (_, tops) in zip(which, state.chars, strict=True) if hit for top in tops]
            state.next_match[which] = self._after(tops)
        following = state.next_char[code_point] = state.next_match[which]
        self._n_edges += 1
        return following

    def advance_token(self, state: State, token: int) -> State | None:
        """Where this token leads as a whole, by the elements that name tokens."""
        return self._after([top for element, top in state.tokens if element.matches(token)])

    def union(self, states: list[State | None]) -> State | None:
        """The state of a text that has come to any of these."""
        several = [state for state in states if state is not None]
        if len(several) < 2:
            return several[0] if several else None
        return self._state(frozenset().union(*(state.stacks for state in several)))

    def _after(self, tops: list[Stack]) -> State | None:
        if not tops:
            return None
        return self._state(self._closure([self._push(top.pos + 1, top.below) for top in tops]))

    def _push(self, pos: int, below: Stack | None) -> Stack | None:
        if self._code[pos] is None:  # the end of a sequence: nothing to come back to
            return below
        key = (pos, below)
        stack = self._stacks.get(key)
        if stack is None:
            stack = self._stacks[key] = Stack(pos, below)
        return stack

    def _closure(self, stacks: list[Stack | None]) -> frozenset[Stack | None]:
        """The stacks with a terminal on top that these lead to (llama_grammar_advance_stack)."""
        seen: set[Stack | None] = set(stacks)
        todo = list(seen)
        done: list[Stack | None] = []
        while todo:
            stack = todo.pop()
            element = self._code[stack.pos] if stack is not None else None
            if stack is None or not isinstance(element, tuple):
                done.append(stack)
                continue
            rest = self._push(stack.pos + 1, stack.below)
            for pos in element:
                more = self._push(pos, rest)
                if more not in seen:
                    seen.add(more)
                    todo.append(more)
            self._count(len(element))
            if len(seen) > MAX_STACKS:
                raise GrammarError(
                    f"grammar: more than {MAX_STACKS} ways to go on at once; it is too ambiguous to follow"
                )
        return frozenset(done)

    def _count(self, steps: int) -> None:
        self._steps += steps
        if self._steps > MAX_STEPS:
            raise GrammarError(f"grammar: more than {MAX_STEPS} steps for one token; it is too ambiguous to follow")

    def _state(self, stacks: frozenset[Stack | None]) -> State:
        state = self._states.get(stacks)
        if state is None:
            if len(stacks) > MAX_STACKS:
                raise GrammarError(
                    f"grammar: more than {MAX_STACKS} ways to go on at once; it is too ambiguous to follow"
                )
            self._count(len(stacks))
            chars: dict[Chars, list[Stack]] = {}
            tokens = []
            for stack in stacks:
                element = self._code[stack.pos] if stack is not None else None
                if stack is not None and isinstance(element, Chars):
                    chars.setdefault(element, []).append(stack)
                elif stack is not None and isinstance(element, TokenId):
                    tokens.append((element, stack))
            state = self._states[stacks] = State(stacks, list(chars.items()), tokens, None in stacks)
        return state


def _flatten(grammar: Grammar) -> tuple[Code, list[tuple[int, ...]]]:
    """All sequences in one list, None after each; where the sequences of each rule begin. A Ref becomes those."""
    starts: list[tuple[int, ...]] = []
    size = 0
    for rule in grammar.rules:
        begins = []
        for sequence in rule:
            begins.append(size)
            size += len(sequence) + 1
        starts.append(tuple(begins))
    code: Code = []
    for rule in grammar.rules:
        for sequence in rule:
            code += [starts[element.rule] if isinstance(element, Ref) else element for element in sequence]
            code.append(None)
    return code, starts
