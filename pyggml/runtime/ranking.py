"""What a reranker reads of a query and a document. Owns how they are joined, by the model's template or its separators: in one text
as llama-embedding has it (examples/embedding/embedding.cpp), or in tokens as llama-server has them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pyggml.tokenizer import Tokenizer

TEMPLATE = "tokenizer.chat_template.rerank"


def joined(tokenizer: Tokenizer, metadata: Mapping[str, Any], parts: Sequence[str]) -> str:
    """A text to be encoded with special tokens read. With a template the first two of `parts` are query and document; else
    EOS and SEP stand between all of them, as far as the vocabulary wants either."""
    template = metadata.get(TEMPLATE)
    if isinstance(template, str):
        return _filled(template, parts[0], parts[1])
    between = ""
    for wanted, token in ((tokenizer.add_eos, tokenizer.eos), (tokenizer.add_sep, tokenizer.sep)):
        if wanted and token is not None:
            between += tokenizer.vocab.texts[token]
    return between.join(parts)


def rank_tokens(
    tokenizer: Tokenizer, metadata: Mapping[str, Any], query: str, document: str, encode: Callable[..., list[int]]
) -> list[int]:
    """Tokens of both (tools/server/server-common.cpp: format_prompt_rerank). Without a template, names of special tokens are plain
    text in them; with one nothing is added to it. `encode`: as Tokenizer.encode, which adds nothing unless it is asked to."""
    template = metadata.get(TEMPLATE)
    if isinstance(template, str):
        return encode(_filled(template, query, document), parse_special=True)
    eos = tokenizer.sep if tokenizer.eos is None else tokenizer.eos
    begin = [tokenizer.bos] if tokenizer.add_bos else []
    end, between = [eos] if tokenizer.add_eos else [], [tokenizer.sep] if tokenizer.add_sep else []
    first, second = encode(query, parse_special=False), encode(document, parse_special=False)
    return [t for t in (*begin, *first, *end, *between, *second, *end) if t is not None]


def _filled(template: str, query: str, document: str) -> str:
    said = {"{query}": query, "{document}": document}  # what a query says is no part of the template
    return re.sub("{query}|{document}", lambda found: said[found[0]], template)
