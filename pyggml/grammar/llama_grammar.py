"""The `LlamaGrammar` that users of llama-cpp-python know. Owns its constructors."""

import os
from pathlib import Path
from typing import Any

from pyggml.errors import GrammarError
from pyggml.grammar.json_schema import json_schema_to_grammar
from pyggml.grammar.parser import parse
from pyggml.grammar.trigger import Trigger


class LlamaGrammar:
    """The text of a grammar, for the parameter `grammar` of Llama's methods. Raises GrammarError for a bad one.

    >>> llm("Yes or no?", grammar=LlamaGrammar.from_string('root ::= "yes" | "no"'))
    """

    def __init__(self, grammar: str) -> None:
        if not isinstance(grammar, str):
            raise GrammarError(f"grammar: {grammar!r:.60} is no text")
        parse(grammar, token_of=lambda text: [0])  # names of tokens are looked up once there is a vocabulary
        self.grammar = grammar
        self.trigger: Trigger | None = None  # when it begins to hold; None: from the beginning
        self.shown: frozenset[int] = frozenset()  # control tokens whose names are part of the text

    @classmethod
    def from_string(cls, grammar: str, verbose: bool = True) -> "LlamaGrammar":
        """From GBNF."""
        return cls(grammar)

    @classmethod
    def from_file(cls, file: str | os.PathLike[str], verbose: bool = True) -> "LlamaGrammar":
        """From a file with GBNF."""
        try:
            text = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as reason:
            raise GrammarError(f"grammar file {os.fspath(file)}: {reason}") from None
        return cls(text)

    @classmethod
    def from_json_schema(cls, json_schema: str | dict[str, Any], verbose: bool = True) -> "LlamaGrammar":
        """From a JSON schema, as text or parsed."""
        return cls(json_schema_to_grammar(json_schema))

    def reset(self) -> None:
        """Nothing is kept from one answer to the next."""
