"""GBNF grammars: what text a model may write next.

Owns the names that other packages import; must not know logits or samplers.
Read in this order: `rules` (the data), `parser` (from text), `matcher` (text against rules), `vocabulary` (tokens
against rules), `lazy` (rules that hold from a word on), `json_schema` (a grammar from a JSON schema), `composed` (from
schemas and markers). What NumPy is needed for is imported from `vocabulary` and `lazy` themselves.
"""

from pyggml.grammar.composed import ComposedGrammar
from pyggml.grammar.json_schema import json_schema_to_grammar
from pyggml.grammar.llama_grammar import LlamaGrammar
from pyggml.grammar.matcher import Matcher
from pyggml.grammar.parser import parse
from pyggml.grammar.rules import Grammar
from pyggml.grammar.trigger import Trigger

__all__ = [
    "ComposedGrammar",
    "Grammar",
    "LlamaGrammar",
    "Matcher",
    "Trigger",
    "json_schema_to_grammar",
    "parse",
]
