"""Grammars composed of literals, JSON schemas and texts that end at a marker: what replies in a format are held to.

Owns the rules while they are put together.
"""

from collections.abc import Mapping
from typing import Any

from pyggml.errors import GrammarError
from pyggml.grammar.json_nodes import read_schema
from pyggml.grammar.json_schema import Converter
from pyggml.grammar.json_text import literal
from pyggml.grammar.parser import parse

__all__ = ["ComposedGrammar", "literal"]


class ComposedGrammar:
    """>>> grammar = ComposedGrammar()
    >>> arguments = grammar.schema("arguments", {"type": "object"})
    >>> grammar.text(f'"<call>" {arguments} "</call>"')

    Methods return what a rule's text may hold: a rule's name.
    """

    def __init__(self) -> None:
        self._converter = Converter()

    def rule(self, name: str, text: str) -> str:
        """A rule of this name, or of a similar one if there is another."""
        return self._converter.add_rule(name, text)

    def schema(self, name: str, schema: Any) -> str:
        """The JSON that this schema describes. Raises GrammarError."""
        self._converter.ref_prefix = f"{name}-"
        self._converter.resolving.clear()
        if not isinstance(schema, Mapping) or not schema:
            return self._converter.builtin("value")
        return self._converter.visit(read_schema(dict(schema)), name, 0)

    def builtin(self, name: str) -> str:
        """A rule that JSON schemas use too: "value", "string", "integer", "number", "boolean", "null"."""
        return self._converter.builtin(name)

    def instead(self, name: str, text: str) -> None:
        """Another text for a rule that is there."""
        if name in self._converter.rules:
            self._converter.rules[name] = text

    def until(self, marker: str) -> str:
        """Any text without `marker` (Knuth, Morris and Pratt's machine: a rule for each part of it that may be there)."""
        assert marker
        name = "until-" + "-".join(f"{ord(char):x}" for char in marker)
        signs = sorted(set(marker))
        other = "[^" + "".join(f"\\U{ord(char):08X}" for char in signs) + "]"
        for n in range(len(marker)):
            ways = [f"{other} {name}-0"]
            for sign in signs:
                text = marker[:n] + sign
                if text == marker:
                    continue
                reached = next(k for k in range(len(text), -1, -1) if text.endswith(marker[:k]))
                ways.append(f"{literal(sign)} {name}-{reached}")
            self._converter.rules[f"{name}-{n}"] = f"({' | '.join(ways)})?"
        return f"{name}-0"

    def text(self, root: str) -> str:
        """GBNF with `root` as the text of its root. Raises GrammarError for one that is too large."""
        rules = {**self._converter.rules, "root": root}
        text = "".join(f"{name} ::= {rule}\n" for name, rule in sorted(rules.items()))
        try:
            parse(text, token_of=lambda text: [0])
        except GrammarError as reason:
            raise GrammarError(f"the tools' schemas make no grammar: {reason}") from None
        return text
