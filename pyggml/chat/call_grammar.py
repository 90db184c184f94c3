"""GBNF of calls of tools as a format writes them (reply/formats.py): each tool's name with arguments that fit its schema.

Owns one function a shape of calls, and how several schemas' rules become one grammar.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pyggml.chat.reply.formats import Row
from pyggml.chat.reply.harmony import Harmony
from pyggml.chat.reply.json_calls import JsonCalls
from pyggml.chat.reply.marked import Marked
from pyggml.chat.reply.named_calls import NamedCalls
from pyggml.chat.reply.tagged_calls import TaggedCalls
from pyggml.grammar import json_schema_to_grammar

_TOKEN = re.compile(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|[A-Za-z][A-Za-z0-9-]*')
_WS = 'tool-ws ::= (" " | "\\n"{1,2} [ \\t]{0,20})?'
_BARE = r'^\s*(?:<\|python_tag\|>)?\s*\{\s*"(?:name|type|function)"'
Tool = tuple[str, Mapping[str, Any]]
"""A name, and the schema of arguments."""


class CallGrammar(NamedTuple):
    """`text`: GBNF from the beginning of a call on; `triggers`: regular expressions of what begins one."""

    text: str
    triggers: list[str]


def call_grammar(row: Row, tools: Sequence[Mapping[str, Any]], parallel: bool) -> CallGrammar | None:
    """What holds calls of these tools, one or several, to their schemas. None: calls of this format are not held to anything.
    Raises GrammarError for a bad schema."""
    listed = [(str(tool["function"]["name"]), tool["function"].get("parameters") or {}) for tool in tools]
    if isinstance(row.form, Harmony):
        return CallGrammar(_harmony(listed), [r"to=functions\."])
    if not isinstance(row.form, Marked):
        return None
    calls = row.form.calls
    bare = row.form.bare and row.name == "llama-3"
    if isinstance(calls, JsonCalls):
        text = _bare(calls, listed, parallel) if bare else _json(calls, listed, parallel)
    elif isinstance(calls, NamedCalls):
        text = _named(calls, listed, parallel)
    elif isinstance(calls, TaggedCalls) and not calls.typed:
        text = _tagged(calls, listed, parallel)
    else:
        return None
    return CallGrammar(text, [*map(re.escape, calls.openings), *([_BARE] if bare else [])])


def after_reasoning(row: Row, opened: str) -> list[str]:
    """What a grammar of all that is said has to wait for: the end of reasoning that the prompt has opened, else nothing."""
    think = row.form.think if isinstance(row.form, Marked) else None
    if think is None or think[0] not in opened or think[1] in opened:
        return []
    return [rf"{re.escape(think[1])}\s*()"]


def literal(text: str) -> str:
    """GBNF of exactly this text."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{escaped}"'


def _quoted(text: str) -> str:
    return literal(json.dumps(text, ensure_ascii=False))


def _rules(root: str, forms: Sequence[str], tools: Sequence[Tool]) -> str:
    """`root` in which tool-call is one of `forms`, a tool's each; {args} in one is its arguments."""
    lines = [f"root ::= {root}", f"tool-call ::= {' | '.join(f'tool-{i}' for i in range(len(forms)))}"]
    for i, (form, (_, schema)) in enumerate(zip(forms, tools, strict=True)):
        lines.append(f"tool-{i} ::= {form.replace('{args}', f't{i}-root')}")
        lines += [schema_rules(f"t{i}-", schema)] if "{args}" in form else []
    return "\n".join([*lines, _WS]) + "\n"


def schema_rules(prefix: str, schema: Mapping[str, Any]) -> str:
    """A schema's rules, the name of each with `prefix` before it. Raises GrammarError."""

    def renamed(found: re.Match[str]) -> str:
        return found[0] if found[0][0] in '"[' else prefix + found[0]

    given = {"type": "object", **schema} if "$ref" not in schema else dict(schema)
    return _TOKEN.sub(renamed, json_schema_to_grammar(given)).rstrip()


def _object(calls: JsonCalls, name: str) -> str:
    if not calls.name:
        return f'"{{" tool-ws {_quoted(name)} ":" tool-ws {{args}} tool-ws "}}"'
    number = f'{_quoted(calls.id)} ":" tool-ws "\\"" [a-zA-Z0-9_-]{{1,40}} "\\""' if calls.id else ""
    first = number and calls.name != "name"  # Cohere's comes before the name, Mistral's after the arguments
    early = f'({number} tool-ws "," tool-ws)?' if first else ""
    late = f' (tool-ws "," tool-ws {number})?' if number and not first else ""
    pair = f'{_quoted(calls.name)} ":" tool-ws {_quoted(name)} tool-ws "," tool-ws {_quoted(calls.arguments)} ":" tool-ws {{args}}'
    return f'"{{" tool-ws {early} {pair}{late} tool-ws "}}"'


def _json(calls: JsonCalls, tools: Sequence[Tool], parallel: bool) -> str:
    forms = [_object(calls, name) for name, _ in tools]
    opening, close = literal(calls.openings[0]), f" tool-ws {literal(calls.closing)}" if calls.closing else ""
    if calls.in_list or calls.openings[0].endswith("["):
        more = ' (tool-ws "," tool-ws tool-call)*' if parallel else ""
        inside = f"tool-call{more}" if calls.openings[0].endswith("[") else f'"[" tool-ws tool-call{more} tool-ws "]"'
        return _rules(f"{opening} tool-ws {inside}{close}", forms, tools)
    return _rules(f"({opening} tool-ws tool-call{close} tool-ws){'+' if parallel else ''}", forms, tools)


def _bare(calls: JsonCalls, tools: Sequence[Tool], parallel: bool) -> str:
    """An object and nothing else, perhaps after a mark."""
    more = ' (tool-ws ";" tool-ws tool-call)*' if parallel else ""
    root = f"tool-ws {literal(calls.openings[0])}? tool-ws tool-call{more}"
    return _rules(root, [_object(calls, name) for name, _ in tools], tools)


def _named(calls: NamedCalls, tools: Sequence[Tool], parallel: bool) -> str:
    close = f" tool-ws {literal(calls.close[0].strip())}" if calls.close else ""
    forms = []
    for name, _ in tools:
        head, mark, tail = calls.written.format(name=name, number="\0").partition("\0")
        written = literal(head) + (f" [0-9]{{1,3}} {literal(tail)}" if mark else "")
        forms.append(f"{literal(calls.call)} {written} {literal(calls.named[0])} tool-ws {{args}}{close}")
    several = "tool-call (tool-ws tool-call)*" if parallel else "tool-call"
    before = f"{literal(calls.section[0])} tool-ws " if calls.section else ""
    after = f" tool-ws {literal(calls.section_end)}" if calls.section_end else ""
    return _rules(f"{before}{several}{after}", forms, tools)


def _tagged(calls: TaggedCalls, tools: Sequence[Tool], parallel: bool) -> str:
    """Arguments in the order of the schema; a value is any text without what may end it."""
    stop = calls.valued[0]
    first, second = (re.escape(c) if c in r"]\^-" else c for c in stop[:2])
    gap = '"\\n"?' if calls.newlines else ""
    value = f"([^{first}] | {literal(stop[0])} [^{second}])*"
    forms = []
    for name, schema in tools:
        required = schema.get("required") or ()
        form = f"{literal(calls.call)} {literal(name)} {literal(calls.named[0])}"
        for key in schema.get("properties") or {}:
            between = f" tool-ws {literal(calls.between)}" if calls.between else ""
            one = (
                f"{literal(calls.key)} {literal(key)} {literal(calls.keyed[0])}{between} {gap} {value} {literal(stop)}"
            )
            form += f" tool-ws ({one}){'' if key in required else '?'}"
        forms.append(f"{form} tool-ws {literal(calls.close)}" if calls.close else form)
    before = f"{literal(calls.section[0])} tool-ws " if calls.section else ""
    after = f" tool-ws {literal(calls.section_end)}" if calls.section_end else ""
    if calls.call and not calls.loose:
        several = "tool-call (tool-ws tool-call)*" if parallel else "tool-call"
        return _rules(f"{before}{several}{after}", forms, tools)
    before = f"({before.strip()})? " if calls.loose and before else before
    after = f"({after.strip()})?" if calls.loose and after else after
    return _rules(f"({before}tool-call {after} tool-ws){'+' if parallel else ''}", forms, tools)


def _harmony(tools: Sequence[Tool]) -> str:
    """From a recipient on; before it, where all of a message is held to it, its channel."""
    rest = '[^<]{0,20} ("<|channel|>" [a-z]{0,12} [^<]{0,20})? ("<|constrain|>" [a-z]{0,8})? "<|message|>"'
    forms = [f"{literal(f'to=functions.{name}')} {rest} {{args}}" for name, _ in tools]
    return _rules('("<|channel|>" "commentary")? " "? tool-call', forms, tools)
