"""`--verbose-prompt`: the tokens of a prompt, on stderr."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyggml.tokenizer import Tokenizer


def show_prompt(tokens: Sequence[int], tokenizer: "Tokenizer") -> None:
    """Their number, and a line for each."""
    print(f"number of tokens in prompt = {len(tokens)}", file=sys.stderr)
    for token in tokens:
        print(f"{token:6} -> {tokenizer.token_bytes(token).decode('utf-8', 'replace')!r}", file=sys.stderr)
