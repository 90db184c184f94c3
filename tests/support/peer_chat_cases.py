"""The reference's own cases of replies, read from the text of its tests/test-chat.cpp.

Owns a reader of as much C++ as stands there: constants, tools, and chains tester.test("...").option(...).run().
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_TOKEN = re.compile(
    r'R"(?P<tag>[^(\s"]*)\((?P<raw>.*?)\)(?P=tag)"|"(?P<text>(?:\\.|[^"\\])*)"|(?P<comment>//[^\n]*|/\*.*?\*/)'
    r"|(?P<word>[A-Za-z_][A-Za-z_0-9:]*)|(?P<number>\d+)|(?P<space>\s+)|(?P<sign>.)",
    re.DOTALL,
)
_SET = {"expect_content": "content", "expect_reasoning": "reasoning", "expect_tool_calls": "calls"}


class Unreadable(Exception):
    """C++ beyond this reader."""


@dataclass
class Case:
    """One chain: what is read (`text`), what a request says (`options`), and what is expected."""

    template: str
    line: int
    text: str
    options: dict[str, Any] = field(default_factory=dict)
    content: str = ""
    reasoning: str = ""
    calls: list[Any] = field(default_factory=list)

    @property
    def label(self) -> str:
        return f"{Path(self.template).stem}-{self.line}"


def read_cases(path: Path) -> tuple[list[Case], int]:
    """All cases of the file, and how many chains could not be read."""
    source = path.read_text(encoding="utf-8")
    names = _constants(source)
    found: list[Case] = []
    failed = 0
    testers = [
        (m.start(), m["name"], m["path"])
        for m in re.finditer(r'auto (?P<name>\w+) = peg_tester\((?:"(?P<path>[^"]+)"|\w+)', source)
    ]
    for m in re.finditer(r"\b(tst2?)\s*\.\s*test\(", source):
        here = [t for t in testers if t[0] < m.start() and t[1] == m[1]]
        if not here:
            failed += 1
            continue
        local = dict(names)
        block = source[here[-1][0] : m.start()]
        for c in re.finditer(r"(?:const )?(?:std::string|char \*|auto)\s+(\w+)\s*=\s*(?=\"|R\")", block):
            try:
                local[c[1]] = _Reader(block, c.end(), local).expression()
            except Unreadable:
                continue
        paths = [here[-1][2]] if here[-1][2] else _paths(source[: here[-1][0]])
        try:
            for template in paths:
                case = Case(template, source.count("\n", 0, m.start()) + 1, "")
                _chain(_Reader(source, m.end() - len("test("), local), case)
                found.append(case)
        except (Unreadable, KeyError, ValueError, TypeError, IndexError):
            failed += 1
    return found, failed


def _paths(before: str) -> list[str]:
    """Templates of the loop or the parameter that the tester's path is of."""
    loop = before.rfind("for (const auto & path :")
    if loop < 0 or before.count("\n", loop) > 6:
        return ["models/templates/LFM2-8B-A1B.jinja", "models/templates/LFM2.5-Instruct.jinja"]
    return re.findall(r'"([^"]+\.jinja)"', before[loop:])


def _constants(source: str) -> dict[str, Any]:
    names: dict[str, Any] = {"true": True, "false": False}
    for m in re.finditer(
        r"(?:static|const) (?:common_chat_msg|common_chat_tool|std::vector<common_chat_tool>)\s+(\w+)\s*=?\s*(?=[{a-z])"
        r"|(?:const )?char \*\s*(?:const )?(\w+_schema)\s*=\s*",
        source,
    ):
        try:
            value = _Reader(source, m.end(), names).expression()
            if "common_chat_msg" in m[0] and isinstance(value, list):  # {role, content, ...}
                value = {**_message(value[1]), "role": value[0]}
            names[m[1] or m[2]] = value
        except Unreadable:
            continue
    return names


def _message(content: str = "", reasoning: str = "", name: str = "", arguments: str = "", call: str = "") -> Any:
    calls = [[name, arguments, call]] if name or call else []
    return {"role": "assistant", "content": content, "reasoning": reasoning, "calls": calls}


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "simple_assist_msg": _message,
    "message_with_tool_calls": lambda name, arguments: _message("", "", name, arguments),
    "message_with_tool_calls_and_reasoning": lambda name, arguments, why: _message("", why, name, arguments),
    "message_with_content_and_tool_call": lambda text, name, arguments: _message(text, "", name, arguments),
    "message_with_reasoning_and_tool_call": lambda why, name, arguments: _message("", why, name, arguments),
    "message_with_reasoning_content_and_multiple_tool_calls": lambda why, text, calls: {
        **_message(text, why),
        "calls": [[*call, ""] for call in calls],
    },
}


def _chain(reader: "_Reader", case: Case) -> None:
    while True:
        name = reader.word()
        arguments = reader.arguments()
        if name == "run":
            return
        if name == "test":
            case.text = arguments[0]
        elif name == "expect":
            message = arguments[0]
            case.content, case.reasoning, case.calls = message["content"], message["reasoning"], message["calls"]
        elif name in _SET:
            setattr(case, _SET[name], arguments[0])
        else:
            case.options[name] = arguments[0] if arguments else True
        reader.sign(".")


def tools_of(values: list[list[str]]) -> list[dict[str, Any]]:
    """Tools in OpenAI's form from {name, description, parameters}."""
    keys = ("name", "description")
    return [
        {"type": "function", "function": {**dict(zip(keys, tool[:2], strict=True)), "parameters": json.loads(tool[2])}}
        for tool in values
    ]


class _Reader:
    def __init__(self, source: str, place: int, names: dict[str, Any]) -> None:
        self._source, self._place, self._names = source, place, names

    def _peek(self) -> "re.Match[str]":
        while True:
            m = _TOKEN.match(self._source, self._place)
            if m is None:
                raise Unreadable("the end")
            if m["space"] is None and m["comment"] is None:
                return m
            self._place = m.end()

    def _next(self) -> "re.Match[str]":
        m = self._peek()
        self._place = m.end()
        return m

    def word(self) -> str:
        m = self._next()
        if m["word"] is None:
            raise Unreadable(m[0])
        return m["word"]

    def sign(self, wanted: str) -> None:
        if (m := self._next())[0] != wanted:
            raise Unreadable(f"{m[0]} in place of {wanted}")

    def arguments(self) -> list[Any]:
        self.sign("(")
        return self._list(")")

    def _list(self, end: str) -> list[Any]:
        out = []
        while self._peek()[0] != end:
            out.append(self.expression())
            if self._peek()[0] == ",":
                self._next()
        self._next()
        return out

    def expression(self) -> Any:
        value = self._one()
        while True:
            m = self._peek()
            if m[0] == "+":
                self._next()
                value = value + self._one()
            elif isinstance(value, str) and (m["text"] is not None or m["raw"] is not None):
                value = value + self._one()
            else:
                return value

    def _one(self) -> Any:
        m = self._next()
        if m["raw"] is not None:
            return m["raw"]
        if m["text"] is not None:
            return _unescaped(m["text"])
        if m["number"] is not None:
            return int(m["number"])
        if m[0] == "{":
            return self._list("}")
        word = m["word"]
        if word is None:
            raise Unreadable(m[0])
        if self._peek()[0] == "(":
            arguments = self.arguments()
            if word == "std::string":
                return arguments[0]
            if word not in _FUNCTIONS:
                raise Unreadable(word)
            return _FUNCTIONS[word](*arguments)
        if word.startswith("COMMON_"):
            return word
        if word not in self._names:
            raise Unreadable(word)
        return self._names[word]


def _unescaped(text: str) -> str:
    def one(m: "re.Match[str]") -> str:
        known = {"n": "\n", "t": "\t", "r": "\r", "0": "\0"}
        body = m[1]
        if body[0] == "u":
            return chr(int(body[1:], 16))
        if body[0] == "x":
            return chr(int(body[1:], 16))
        return known.get(body, body)

    return re.sub(r"\\(u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|.)", one, text, flags=re.DOTALL)
