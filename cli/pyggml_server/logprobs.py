"""Log-probabilities of tokens in the shapes of OpenAI's two APIs. Owns these."""

import math
from typing import Any

from pyggml.runtime.logprobs import TokenLogprobs
from pyggml.tokenizer import Tokenizer

LOWEST = -3.4e38  # JSON has no infinity


def _one(tokenizer: Tokenizer, token: int, value: float) -> dict[str, Any]:
    data = tokenizer.token_bytes(token)
    text = data.decode("utf-8", "replace")
    return {"id": token, "token": text, "bytes": list(data), "logprob": max(value, LOWEST)}


def content(tokenizer: Tokenizer, tokens: list[int], found: list[TokenLogprobs]) -> list[dict[str, Any]]:
    """Of chat completions: a dict a token."""
    return [
        {
            **_one(tokenizer, token, logprobs.value),
            "top_logprobs": [_one(tokenizer, other, value) for other, value in logprobs.top],
        }
        for token, logprobs in zip(tokens, found, strict=True)
    ]


def probabilities(tokenizer: Tokenizer, tokens: list[int], found: list[TokenLogprobs]) -> list[dict[str, Any]]:
    """As `content`, with probabilities in place of their logarithms: of llama-server's post_sampling_probs."""

    def plain(entry: dict[str, Any]) -> dict[str, Any]:
        return {
            **{k: v for k, v in entry.items() if k not in ("logprob", "top_logprobs")},
            "prob": math.exp(entry["logprob"]),
        }

    return [
        {**plain(entry), "top_probs": [plain(top) for top in entry["top_logprobs"]]}
        for entry in content(tokenizer, tokens, found)
    ]


def columns(tokenizer: Tokenizer, tokens: list[int], found: list[TokenLogprobs], offset: int = 0) -> dict[str, Any]:
    """Of completions: lists, an element a token; `offset`: characters of the text before them."""
    entries = content(tokenizer, tokens, found)
    offsets = []
    for entry in entries:
        offsets.append(offset)
        offset += len(entry["token"])
    return {
        "tokens": [entry["token"] for entry in entries],
        "token_logprobs": [entry["logprob"] for entry in entries],
        "top_logprobs": [{top["token"]: top["logprob"] for top in entry["top_logprobs"]} for entry in entries],
        "text_offset": offsets,
        "content": entries,
    }
