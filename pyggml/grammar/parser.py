"""GBNF text to rules.

Owns the syntax and the rewriting of repetitions. Syntax: llama.cpp, src/llama-grammar.cpp (llama_grammar_parser) and
grammars/README.md. What is refused there is refused here, with the line; in addition what would take that side down:
x{5,3}, thousands of nested groups, millions of elements.
"""

import re
from collections.abc import Callable

from pyggml.errors import GrammarError
from pyggml.grammar.rules import Chars, Element, Grammar, Ref, Sequence, TokenId

MAX_REPETITION = 2000  # llama-grammar.cpp, MAX_REPETITION_THRESHOLD
MAX_DEPTH = 200  # nested groups
MAX_ELEMENTS = 1_000_000
MAX_ALTERNATIVES = 5_000  # of a rule: matcher.py follows no more ways at once
MAX_LENGTH = 1_000_000  # characters of the text

_SPACE = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_SPACE_AND_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_NAME = re.compile(r"[a-zA-Z0-9-]+")
_DIGITS = re.compile(r"[0-9]+")
_HEX = {"x": 2, "u": 4, "U": 8}
_ESCAPES = {"t": "\t", "r": "\r", "n": "\n", "\\": "\\", '"': '"', "[": "[", "]": "]", "-": "-"}

TokenOf = Callable[[str], list[int]]
"""The tokens of a text, names of special tokens read: what `<name>` in a grammar needs."""


def parse(text: str, root: str = "root", token_of: TokenOf | None = None) -> Grammar:
    """The grammar that `text` describes. Raises GrammarError, whose message names the line."""
    return _Parser(text, token_of).grammar(root)


class _Parser:
    def __init__(self, text: str, token_of: TokenOf | None) -> None:
        if len(text) > MAX_LENGTH:
            raise GrammarError(f"grammar: {len(text)} characters, more than {MAX_LENGTH}")
        self.text = text.split("\0")[0]
        self.pos = 0
        self.token_of = token_of
        self.numbers: dict[str, int] = {}
        self.rules: dict[int, list[Sequence]] = {}
        self.depth = 0
        self.n_elements = 0

    def grammar(self, root: str) -> Grammar:
        self._skip(True)
        while self.pos < len(self.text):
            self._rule()
        names = {number: name for name, number in self.numbers.items()}
        for number, name in names.items():
            if number not in self.rules:
                raise GrammarError(f"grammar: rule {name!r} is used but not defined")
        if root not in self.numbers:
            raise GrammarError(f"grammar: there is no rule {root!r} to begin with")
        count = len(names)
        rules = tuple(tuple(self.rules[number]) for number in range(count))
        return Grammar(rules, tuple(names[number] for number in range(count)), self.numbers[root])

    # ---- the text

    def _error(self, message: str, pos: int | None = None) -> GrammarError:
        pos = self.pos if pos is None else pos
        line = self.text.count("\n", 0, pos) + 1
        found = self.text[pos : pos + 20].split("\n")[0]
        return GrammarError(f"grammar, line {line}: {message}" + (f" at {found!r}" if found else " at the line's end"))

    def _peek(self) -> str:
        return self.text[self.pos : self.pos + 1]

    def _skip(self, lines: bool) -> None:
        match = (_SPACE_AND_LINES if lines else _SPACE).match(self.text, self.pos)
        assert match is not None
        self.pos = match.end()

    def _take(self, pattern: re.Pattern[str], what: str) -> str:
        match = pattern.match(self.text, self.pos)
        if match is None:
            raise self._error(f"expecting {what}")
        self.pos = match.end()
        return match.group()

    def _expect(self, text: str) -> None:
        if not self.text.startswith(text, self.pos):
            raise self._error(f"expecting {text!r}")
        self.pos += len(text)

    # ---- rules

    def _number(self, name: str) -> int:
        return self.numbers.setdefault(name, len(self.numbers))

    def _new_number(self, name: str) -> int:
        number = len(self.numbers)
        self.numbers[f"{name}_{number}"] = number
        return number

    def _count(self, n: int) -> None:
        self.n_elements += n
        if self.n_elements > MAX_ELEMENTS:
            raise self._error(f"more than {MAX_ELEMENTS} elements once repetitions are written out")

    def _rule(self) -> None:
        name = self._take(_NAME, "a rule's name")
        self._skip(False)
        number = self._number(name)
        self._expect("::=")
        self._skip(True)
        self.rules[number] = self._alternatives(name, False)
        if self.pos < len(self.text):
            if self._peek() not in "\r\n":
                raise self._error("expecting a new line or the end")
            self._skip(True)

    def _alternatives(self, name: str, nested: bool) -> list[Sequence]:
        found = [self._sequence(name, nested)]
        while self._peek() == "|":
            if len(found) == MAX_ALTERNATIVES:
                raise self._error(f"more than {MAX_ALTERNATIVES} alternatives")
            self.pos += 1
            self._skip(True)
            found.append(self._sequence(name, nested))
        return found

    def _sequence(self, name: str, nested: bool) -> Sequence:
        out: list[Element] = []
        last = 0  # where the latest item begins: what a repetition repeats
        weight = 1  # rules that repeating it would multiply
        while sign := self._peek():
            if sign in "*+?{":
                low, high = self._times(sign, nested)
                if last == len(out):
                    raise self._error("expecting an item before * + ? or {")
                weight = self._repeat(name, out, last, low, high, weight)
                continue
            if sign not in '"[<!(.' and not _NAME.match(sign):
                break
            last, weight = len(out), 1
            if sign == "(":
                before = len(self.numbers)
                out.append(self._group(name))
                weight = max(1, len(self.numbers) - before)
            else:
                out += self._item(sign)
            self._count(len(out) - last)
            self._skip(nested)
        return tuple(out)

    def _item(self, sign: str) -> list[Element]:
        if sign == '"':
            return self._literal()
        if sign == "[":
            return self._char_class()
        if sign in "<!":
            return [self._token()]
        if sign == ".":
            self.pos += 1
            return [Chars((), negated=True)]
        return [Ref(self._number(self._take(_NAME, "a rule's name")))]

    def _group(self, name: str) -> Ref:
        start = self.pos
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self._error(f"more than {MAX_DEPTH} groups inside each other")
        self.pos += 1
        self._skip(True)
        number = self._new_number(name)
        self.rules[number] = self._alternatives(name, True)
        if self._peek() != ")":
            raise self._error("expecting ')'") if self._peek() else self._error("a group without its ')'", start)
        self.pos += 1
        self.depth -= 1
        return Ref(number)

    def _literal(self) -> list[Element]:
        start = self.pos
        self.pos += 1
        out: list[Element] = []
        while self._peek() != '"':
            if not self._peek():
                raise self._error("a text without its closing quote", start)
            char = self._char()
            out.append(Chars(((char, char),)))
        self.pos += 1
        return out

    def _char_class(self) -> list[Element]:
        start = self.pos
        self.pos += 1
        negated = self._peek() == "^"
        self.pos += negated
        ranges = []
        while self._peek() != "]":
            if not self._peek():
                raise self._error("a character class without its ']'", start)
            low = high = self._char()
            if self._peek() == "-" and self.text[self.pos + 1 : self.pos + 2] != "]":
                self.pos += 1
                high = self._char()
            ranges.append((low, high))
        self.pos += 1
        return [Chars(tuple(ranges), negated)] if ranges else []

    def _char(self) -> int:
        sign = self._peek()
        if not sign:
            raise self._error("expecting a character")
        if sign != "\\":
            self.pos += 1
            return ord(sign)
        kind = self.text[self.pos + 1 : self.pos + 2]
        if kind in _ESCAPES and kind:
            self.pos += 2
            return ord(_ESCAPES[kind])
        if kind not in _HEX or not kind:
            raise self._error("unknown escape")
        digits = self.text[self.pos + 2 : self.pos + 2 + _HEX[kind]]
        if len(digits) != _HEX[kind] or not re.fullmatch("[0-9a-fA-F]+", digits):
            raise self._error(f"expecting {_HEX[kind]} hexadecimal digits")
        self.pos += 2 + _HEX[kind]
        return int(digits, 16)

    def _token(self) -> TokenId:
        negated = self._peek() == "!"
        self.pos += negated
        start = self.pos
        self._expect("<")
        if self._peek() == "[":
            self.pos += 1
            token = self._whole("a token's number")
            if token > 0xFFFFFFFF:
                raise self._error("a token's number too large", start)
            self._expect("]>")
            return TokenId(token, negated)
        end = self.text.find(">", self.pos)
        if end < 0:
            raise self._error("a token without its '>'", start)
        name = self.text[start : end + 1]
        if self.token_of is None:
            raise self._error("a token by name, but there is no vocabulary", start)
        tokens = self.token_of(name)
        if len(tokens) != 1:
            raise self._error(f"{name!r} is not one token of the vocabulary, but {len(tokens)}", start)
        self.pos = end + 1
        return TokenId(tokens[0], negated)

    # ---- repetitions

    def _times(self, sign: str, nested: bool) -> tuple[int, int | None]:
        start = self.pos
        self.pos += 1
        self._skip(nested)
        if sign != "{":
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[sign]
        low = self._whole()
        self._skip(nested)
        high: int | None = low
        if self._peek() == ",":
            self.pos += 1
            self._skip(nested)
            high = None
            if self._peek().isdecimal():
                high = self._whole()
                self._skip(nested)
        self._expect("}")
        self._skip(nested)
        if low > MAX_REPETITION:
            raise self._error(f"{low} repetitions, more than {MAX_REPETITION}", start)
        if high is not None and high > MAX_REPETITION:
            high = None
        if high is not None and high < low:
            raise self._error(f"at least {low} and at most {high} repetitions", start)
        return low, high

    def _whole(self, what: str = "a number") -> int:
        digits = self._take(_DIGITS, what).lstrip("0")
        return int(digits[:12] or "0")  # with more digits it is as much too large

    def _repeat(self, name: str, out: list[Element], last: int, low: int, high: int | None, weight: int) -> int:
        """Writes x{low,high} as x x x (x (x (x)?)?)?, and x{low,} with a rule that refers to itself."""
        item = tuple(out[last:])
        total = high if high else low if low else 1
        if weight * total > MAX_REPETITION:
            raise self._error(f"{weight} rules repeated {total} times are more than {MAX_REPETITION}")
        optional = 1 if high is None else high - low
        self._count(len(item) * (max(low - 1, 0) + optional))
        out[last:] = item * low
        inner: int | None = None
        for _ in range(optional):
            number = self._new_number(name)
            more = number if high is None else inner
            self.rules[number] = [item if more is None else (*item, Ref(more)), ()]
            inner = number
        if inner is not None:
            out.append(Ref(inner))
        return weight * total
