"""llama_cpp.llama_grammar: grammars that hold answers to a form."""

from pyggml.grammar import LlamaGrammar, json_schema_to_grammar

JSON_GBNF = json_schema_to_grammar({"type": "object"})
LIST_GBNF = 'root ::= item+\nitem ::= "- " [^\\r\\n\\x0b\\x0c\\x85\\u2028\\u2029]+ "\\n"\n'


def json_schema_to_gbnf(schema: str, prop_order: list[str] | None = None) -> str:
    """The grammar of a JSON schema; properties come in the schema's order, `prop_order` changes nothing. GrammarError."""
    return json_schema_to_grammar(schema)


__all__ = ["JSON_GBNF", "LIST_GBNF", "LlamaGrammar", "json_schema_to_gbnf"]
