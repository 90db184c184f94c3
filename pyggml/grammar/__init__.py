"""GBNF grammars: what text a model may write next.

Owns the names that other packages import; must not know logits or samplers.
Read in this order: `rules` (the data), `parser` (from text), `matcher` (text against rules), `vocabulary` (tokens
against rules), `json_schema` (a grammar from a JSON schema).
"""

from pyggml.grammar.json_schema import json_schema_to_grammar
from pyggml.grammar.llama_grammar import LlamaGrammar
from pyggml.grammar.matcher import Matcher
from pyggml.grammar.parser import parse
from pyggml.grammar.rules import Grammar
from pyggml.grammar.vocabulary import GrammarState, Vocabulary

__all__ = ["Grammar", "GrammarState", "LlamaGrammar", "Matcher", "Vocabulary", "json_schema_to_grammar", "parse"]
