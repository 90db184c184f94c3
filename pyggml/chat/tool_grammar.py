"""GBNF of calls of tools: each tool's name with arguments that fit its JSON schema.

Owns how several schemas' rules become one grammar.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pyggml.grammar import json_schema_to_grammar

_TOKEN = re.compile(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|[A-Za-z][A-Za-z0-9-]*')
_WS = 'tool-ws ::= (" " | "\\n"{1,2} [ \\t]{0,20})?'


class Tool(NamedTuple):
    """A tool that may be called. `schema`: of its arguments."""

    name: str
    schema: Mapping[str, Any]


Form = tuple[Tool, str]
"""A tool, and GBNF of a call in which {args} stands for its arguments."""


def literal(text: str) -> str:
    """GBNF of exactly this text."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{escaped}"'


def json_call(tool: Tool, key: str, ids: bool = False) -> Form:
    """{"name": ..., KEY: ...}, with an id of nine letters or digits after it if wanted."""
    name = literal('"name":') + " tool-ws " + literal(json.dumps(tool.name, ensure_ascii=False))
    arguments = f'tool-ws "," tool-ws {literal(f"{json.dumps(key)}:")} tool-ws {{args}}'
    end = ' (tool-ws "," tool-ws "\\"id\\":" tool-ws "\\"" [a-zA-Z0-9]{9} "\\"")?' if ids else ""
    return tool, f'"{{" tool-ws {name} {arguments}{end} tool-ws "}}"'


def xml_call(tool: Tool) -> Form:
    """<function=name> with a <parameter=key> for each argument, in the schema's order."""
    required = tool.schema.get("required") or ()
    parts = []
    for key in tool.schema.get("properties") or {}:
        one = f'{literal(f"<parameter={key}>")} "\\n" ([^<] | "<" [^/])* "\\n</parameter>\\n"'
        parts.append(f" {one}" if key in required else f" ({one})?")
    return tool, f'{literal(f"<function={tool.name}>")} "\\n"{"".join(parts)} "</function>"'


def call_grammar(forms: Sequence[Form], before: str, after: str, parallel: bool, root: str = "root") -> str:
    """One of these calls between `before` and `after`, or several of that. Raises GrammarError for a bad schema."""
    rules, names = [], []
    for i, (tool, form) in enumerate(forms):
        if "{args}" in form:
            rules.append(schema_rules(f"t{i}-", tool.schema))
        names.append(f"tool-{i}")
        rules.append(f"tool-{i} ::= {form.replace('{args}', f't{i}-root')}")
    one = f"{before} ({' | '.join(names)}) {after}".strip()
    return "\n".join([f"{root} ::= ({one}){'+' if parallel else ''}", *rules, _WS]) + "\n"


def schema_rules(prefix: str, schema: Mapping[str, Any]) -> str:
    """A schema's rules, the name of each with `prefix` before it."""

    def renamed(found: re.Match[str]) -> str:
        text = found[0]
        return text if text[0] in '"[' else prefix + text

    given = dict(schema) if schema else {"type": "object"}
    return _TOKEN.sub(renamed, json_schema_to_grammar(given)).rstrip()
