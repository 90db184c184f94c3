"""Pieces of GBNF text that JSON schemas need: literals, repetitions, ranges of whole numbers, regular expressions.

Owns how each is written. The forms are llama.cpp's (common/json-schema-to-grammar.cpp), so that both sides make the
same text of a schema.
"""

import re
from collections.abc import Callable

MAX_PATTERN_DEPTH = 100
MAX_PATTERN = 50_000  # characters

_LITERAL_ESCAPES = {"\r": "\\r", "\n": "\\n", '"': '\\"', "\\": "\\\\"}
_ESCAPE = re.compile(r'\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[trn\\"\[\]-])')  # those of GBNF
_SPECIAL = "|.()[]{}*+?^$"


class UnsupportedPattern(Exception):
    """A regular expression that no grammar is written for."""


class InvalidPattern(Exception):
    """Not a regular expression."""


def literal(text: str) -> str:
    """`text` as a GBNF literal."""
    return '"' + "".join(_LITERAL_ESCAPES.get(char, char) for char in text) + '"'


def repetition(item: str, low: int, high: int | None, separator: str = "") -> str:
    """`item` from `low` to `high` times (None: without end), with `separator` between."""
    if high == 0:
        return ""
    if (low, high) == (0, 1):
        return f"{item}?"
    if not separator:
        short = {0: "*", 1: "+"}.get(low) if high is None else None
        return item + (short or f"{{{low},{'' if high is None else high}}}")
    more = repetition(f"({separator} {item})", max(low - 1, 0), None if high is None else high - 1)
    return f"({item} {more})?" if low == 0 else f"{item} {more}"


# ---- whole numbers


def _digit(low: str, high: str) -> str:
    return f"[{low}]" if low == high else f"[{low}-{high}]"


def _next(digit: str, step: int = 1) -> str:
    return chr(ord(digit) + step)


def _digits(low: int, high: int) -> str:
    if low == high:
        return "[0-9]" if low == 1 else f"[0-9]{{{low}}}"
    return f"[0-9]{{{low},{high}}}"


def _between(low: str, high: str) -> str:
    """Numbers between two of the same length."""
    i = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    out = f'"{low[:i]}"' if i else ""
    if i == len(low) or i == len(high):
        return out
    out += " " if i else ""
    a, b, n = low[i], high[i], len(low) - i - 1
    if not n:
        return f"{out}[{a}-{b}]"
    rest_low, rest_high, zeros, nines = low[i + 1 :], high[i + 1 :], "0" * n, "9" * n
    if rest_low == zeros:
        return f"{out}({_digit(a, _next(b, -1))} {_digits(n, n)} | {_digit(b, b)} {_between(zeros, rest_high)})"
    out += f"([{a}] ({_between(rest_low, nines)})"
    if _next(a) < b:
        if rest_high == nines:
            return f"{out} | {_digit(_next(a), b)} {_digits(n, n)})"
        out += f" | {_digit(_next(a), _next(b, -1))} {_digits(n, n)}"
    return f"{out} | {_digit(b, b)} {_between(zeros, rest_high)})"


def whole_numbers(low: int | None, high: int | None, digits: int = 16, top: bool = True) -> str:
    """Whole numbers from `low` to `high`; at least one is given. `digits`: how many there may be. `top`: the number
    begins here, so that it has no leading zero.
    """
    if low is not None and high is not None:
        return _closed_range(low, high, digits)
    fewer = max(digits - 1, 1)
    if low is None:
        assert high is not None
        if high < 0:
            return f'"-" ({whole_numbers(-high, None, digits, False)})'
        negative = f'"-" [1-9] {_digits(0, fewer)} | ' if top else ""
        return negative + whole_numbers(0, high, digits)
    if low < 0:
        return f'"-" ({whole_numbers(None, -low, digits, False)}) | [0] | [1-9] {_digits(0, digits - 1)}'
    if low == 0:
        return f"[0] | [1-9] {_digits(0, fewer)}" if top else _digits(1, digits)
    text, first = str(low), str(low)[0]
    n, start = len(text), "1" if top else "0"
    out = ""
    if n == 1:
        if first > start:
            out = f"{_digit(start, _next(first, -1))} {_digits(1, fewer)} | "
        return f"{out}{_digit(first, '9')} {_digits(0, fewer)}"
    if first > "1":
        out = f"{_digit(start, _next(first, -1))} {_digits(n, fewer)} | "
    out += f"{_digit(first, first)} ({whole_numbers(int(text[1:]), None, fewer, False)})"
    if first < "9":
        out += f" | {_digit(_next(first), '9')} {_digits(n - 1, fewer)}"
    return out


def _closed_range(low: int, high: int, digits: int) -> str:
    if low < 0 and high < 0:
        return f'"-" ({whole_numbers(-high, -low, digits)})'
    out = ""
    if low < 0:
        out = f'"-" ({whole_numbers(0, -low, digits)}) | '
        low = 0
    begin, end = str(low), str(high)
    for n in range(len(begin), len(end)):
        out += f"{_between(begin, '9' * n)} | "
        begin = "1" + "0" * n
    return out + _between(begin, end)


# ---- regular expressions


def pattern_rule(pattern: str, name: str, add_rule: Callable[[str, str], str]) -> str:
    """The GBNF text of a regular expression that is anchored on both sides; rules that it needs go to `add_rule`.

    Raises UnsupportedPattern or InvalidPattern.
    """
    if len(pattern) > MAX_PATTERN:
        raise InvalidPattern(f"{len(pattern)} characters, more than {MAX_PATTERN}")
    if len(pattern) < 2 or pattern[0] != "^" or pattern[-1] != "$":
        raise UnsupportedPattern("not anchored with '^' and '$'")
    reader = _Pattern(pattern[1:-1], name, add_rule)
    rule = reader.sequence()
    if reader.depth:
        raise InvalidPattern("unbalanced parentheses")
    return rule


class _Pattern:
    def __init__(self, text: str, name: str, add_rule: Callable[[str, str], str]) -> None:
        self.text, self.name, self.add_rule = text, name, add_rule
        self.pos = self.depth = 0
        self.sub_rules: dict[str, str] = {}

    def sequence(self) -> str:
        """Up to the closing parenthesis or the end; consecutive literals are joined."""
        seq: list[tuple[str, bool]] = []  # text, and whether it is the inside of a literal
        while self.pos < len(self.text):
            sign = self.text[self.pos]
            if sign == ")":
                self.pos += 1
                if not self.depth:
                    raise InvalidPattern("unbalanced parentheses")
                self.depth -= 1
                break
            if sign in "*+?{":
                self._repeat(sign, seq)
            else:
                seq.append(self._item(sign))
        out: list[str] = []
        joined = ""
        for text, inside in [*seq, ("", False)]:
            if inside:
                joined += text
                continue
            if joined:
                out.append(f'"{joined}"')
                joined = ""
            if text:
                out.append(text)
        return " ".join(out)

    def _item(self, sign: str) -> tuple[str, bool]:
        if sign in ".|":
            self.pos += 1
            return (sign if sign == "|" else self.add_rule("dot", "[^\\x0A\\x0D]")), False
        if sign == "(":
            return self._group(), False
        if sign in "^$":
            raise UnsupportedPattern("anchor inside the pattern")
        if sign == "[":
            return self._char_class(), False
        return self._plain(), True

    def _group(self) -> str:
        self.pos += 1
        if self.text.startswith("?", self.pos):
            if not self.text.startswith("?:", self.pos):
                raise UnsupportedPattern("unsupported group syntax")
            self.pos += 2
        self.depth += 1
        if self.depth > MAX_PATTERN_DEPTH:
            raise UnsupportedPattern("pattern nesting too deep")
        return f"({self.sequence()})"

    def _char_class(self) -> str:
        start = self.pos
        self.pos += 1
        while self.pos < len(self.text) and self.text[self.pos] != "]":
            if self.text[self.pos] == "\\":
                self._escape(" in character class")
            else:
                self.pos += 1
        if self.pos >= len(self.text):
            raise InvalidPattern("unterminated character class")
        self.pos += 1
        return self.text[start : self.pos]

    def _escape(self, where: str = "") -> str:
        match = _ESCAPE.match(self.text, self.pos)
        if match is None:
            raise UnsupportedPattern(f"unsupported escape{where}: {self.text[self.pos : self.pos + 2]}")
        self.pos = match.end()
        return match.group()

    def _repeat(self, sign: str, seq: list[tuple[str, bool]]) -> None:
        self.pos += 1
        low, high = 0, None
        if sign == "{":
            low, high = self._times()
        if not seq:
            raise InvalidPattern("nothing to repeat")
        text, inside = seq[-1]
        if sign != "{":
            seq[-1] = (f'"{text}"' if inside else text) + sign, False
            return
        if not inside and text not in self.sub_rules:
            self.sub_rules[text] = self.add_rule(f"{self.name}-{len(self.sub_rules) + 1}", text)
        seq[-1] = repetition(f'"{text}"' if inside else self.sub_rules[text], low, high), False

    def _times(self) -> tuple[int, int | None]:
        end = self.text.find("}", self.pos)
        if end < 0:
            raise UnsupportedPattern("unterminated curly brackets")
        inside = self.text[self.pos : end]
        self.pos = end + 1
        match = re.fullmatch(r"(\d{1,9})|(\d{0,9}),(\d{0,9})", inside, re.ASCII)
        if match is None:
            raise UnsupportedPattern(f"unsupported number in curly brackets: {inside}")
        only, low, high = match.groups()
        if only:
            return int(only), int(only)
        return int(low or 0), int(high) if high else None

    def _plain(self) -> str:
        """Characters for themselves; the last one before * + ? or { stands alone."""
        out, text = "", self.text
        while self.pos < len(text):
            sign, following = text[self.pos], text[self.pos + 1 : self.pos + 2]
            if sign == "\\":
                if not following:
                    raise InvalidPattern("trailing backslash")
                if following in _SPECIAL:
                    out += following
                    self.pos += 2
                else:
                    out += self._escape()
            elif sign == '"':
                out += '\\"'
                self.pos += 1
            elif sign not in _SPECIAL and (not following or not out or following == "." or following not in _SPECIAL):
                out += sign
                self.pos += 1
            else:
                break
        if not out:
            raise UnsupportedPattern(f"unsupported character: {text[self.pos]}")
        return out
