"""What runs inside a process of the stock library to be compared with: `python peer_forced.py COMMAND JSON`.

Owns the calls that make llama.cpp generate, and say its logits and its loss on texts; must not know pyggml.
"""

import json
import sys
from typing import Any

import llama_cpp
import numpy as np


def greedy(llama: llama_cpp.Llama, p: dict[str, Any]) -> np.ndarray:
    """After each prompt the most likely tokens, one by one; no token ends it. (texts, n_predict)"""
    found = []
    for prompt in p["texts"]:
        llama.reset()
        tokens = list(prompt)
        for _ in range(p["n_predict"]):
            llama.eval(tokens[llama.n_tokens :])
            logits = llama_cpp.llama_get_logits_ith(llama.ctx, -1)
            tokens.append(int(np.ctypeslib.as_array(logits, (llama.n_vocab(),)).argmax()))
        found.append(tokens[len(prompt) :])
    return np.array(found)


def logits(llama: llama_cpp.Llama, p: dict[str, Any]) -> np.ndarray:
    """Each text in one batch: the logits before its last n_predict tokens. (texts, n_predict, n_vocab)"""
    found = np.empty((len(p["texts"]), p["n_predict"], llama.n_vocab()), np.float32)
    for rows, text in zip(found, p["texts"], strict=True):
        llama.reset()
        llama.eval(text[:-1])
        rows[:] = llama.scores[len(text) - 1 - len(rows) : len(text) - 1]
    return found


def losses(llama: llama_cpp.Llama, p: dict[str, Any]) -> np.ndarray:
    """-ln p of each token of each text but its first, given those before it, in one row."""
    found = []
    for text in p["texts"]:
        llama.reset()
        llama.eval(text[:-1])
        for i, token in enumerate(text[1:]):
            row = llama.scores[i].astype(np.float64)
            row -= row.max()
            found.append(np.log(np.exp(row).sum()) - row[token])
    return np.array(found)


def main(command: str, p: dict[str, Any]) -> None:
    llama = llama_cpp.Llama(
        p["model"],
        n_ctx=p["n_ctx"],
        n_batch=p["n_ctx"],
        n_ubatch=512,
        n_threads=1,
        n_threads_batch=1,
        flash_attn=p["flash_attn"],
        logits_all=command != "greedy",
        verbose=False,
    )
    np.save(p["out"], {f.__name__: f for f in (greedy, logits, losses)}[command](llama, p))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
