"""What a reranker reads of a query and a document. Owns how they are joined, by the model's template or its separators
(llama.cpp: examples/embedding/embedding.cpp, tools/server: format_prompt_rerank).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pyggml.tokenizer import Tokenizer

TEMPLATE = "tokenizer.chat_template.rerank"


def joined(tokenizer: Tokenizer, metadata: Mapping[str, Any], parts: Sequence[str]) -> str:
    """A text to be encoded with special tokens read. With a template the first two of `parts` are query and document; else
    EOS and SEP stand between all of them, as far as the vocabulary wants either."""
    template = metadata.get(TEMPLATE)
    if isinstance(template, str):
        said = {"{query}": parts[0], "{document}": parts[1]}  # what a query says is no part of the template
        return re.sub("{query}|{document}", lambda found: said[found[0]], template)
    between = ""
    for wanted, token in ((tokenizer.add_eos, tokenizer.eos), (tokenizer.add_sep, tokenizer.sep)):
        if wanted and token is not None:
            between += tokenizer.vocab.texts[token]
    return between.join(parts)
