"""A grammar as data: rules, each of several alternatives, each a sequence of elements.

Owns what an element matches, and the check for left recursion.
"""

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate

from pyggml.errors import GrammarError


class Chars:
    """One code point out of ranges, or, if negated, outside of them. `.` is the negation of nothing.

    A class may have hundreds of thousands of ranges: a question takes the logarithm of their number, and its hash is
    made once. Equal are those of the same ranges in the same order.
    """

    __slots__ = ("_ends", "_hash", "_lows", "negated", "ranges")

    def __init__(self, ranges: tuple[tuple[int, int], ...], negated: bool = False) -> None:
        self.ranges = ranges
        self.negated = negated
        ordered = sorted(ranges)
        self._lows = [low for low, _ in ordered]
        self._ends = list(accumulate((high for _, high in ordered), max))  # the largest end so far
        self._hash = hash((ranges, negated))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, Chars)
            and self._hash == other._hash
            and self.negated == other.negated
            and self.ranges == other.ranges
        )

    def __repr__(self) -> str:
        return f"Chars({self.ranges!r}, negated={self.negated})"

    def matches(self, code_point: int) -> bool:
        """Whether this code point is one of them."""
        return self._meets(code_point, code_point) != self.negated

    def matches_some(self, low: int, high: int) -> bool:
        """Whether a character from `low` to `high` may be one of them: with llama.cpp's answer for negated ranges,
        no if any of the characters is excluded (llama-grammar.cpp, llama_grammar_match_partial_char).
        """
        return self._meets(low, high) != self.negated

    def _meets(self, low: int, high: int) -> bool:
        """Whether any range begins at `high` or before and ends at `low` or behind."""
        n = bisect_right(self._lows, high)
        return n > 0 and self._ends[n - 1] >= low


@dataclass(frozen=True, slots=True)
class TokenId:
    """One token, whatever its text; negated: any other one."""

    token: int
    negated: bool = False

    def matches(self, token: int) -> bool:
        """Whether it is this token, or, if negated, another one."""
        return (token == self.token) != self.negated


@dataclass(frozen=True, slots=True)
class Ref:
    """What another rule matches, by its number."""

    rule: int


Element = Chars | TokenId | Ref
Sequence = tuple[Element, ...]


@dataclass(frozen=True)
class Grammar:
    """Rules and the number of the one to begin with. Raises GrammarError for left recursion, which never ends."""

    rules: tuple[tuple[Sequence, ...], ...]
    names: tuple[str, ...]
    root: int

    def __post_init__(self) -> None:
        looping = self._left_recursive()
        if looping is not None:
            raise GrammarError(f"grammar: rule {self.names[looping]!r} begins with itself (left recursion)")

    def _left_recursive(self) -> int | None:
        """A rule that can come back to itself before any character, or None."""
        begins = self._beginnings()
        done: set[int] = set()
        for start in range(len(self.rules)):
            path: list[tuple[int, list[int]]] = []
            on_path: set[int] = set()
            todo: int | None = start
            while todo is not None or path:
                if todo is not None and todo not in done:
                    if todo in on_path:
                        return todo
                    on_path.add(todo)
                    path.append((todo, list(begins[todo])))
                todo = None
                if path:
                    rule, rest = path[-1]
                    if rest:
                        todo = rest.pop()
                    else:
                        path.pop()
                        on_path.discard(rule)
                        done.add(rule)
        return None

    def _beginnings(self) -> list[set[int]]:
        """For each rule those that may stand at its beginning. Only a rule with an empty alternative counts as one
        that may be empty, as in llama.cpp: ("x"*)* is then allowed, and it does end.
        """
        nullable = {number for number, rule in enumerate(self.rules) if () in rule}
        begins: list[set[int]] = [set() for _ in self.rules]
        for number, rule in enumerate(self.rules):
            for sequence in rule:
                for e in sequence:
                    if not isinstance(e, Ref):
                        break
                    begins[number].add(e.rule)
                    if e.rule not in nullable:
                        break
        return begins
