"""What runs inside a process of the stock library to be compared with: `python peer_forced.py JSON`.

Owns the calls that make llama.cpp say its logits token by token, and its loss on texts; must not know pyggml.
"""

import json
import sys
from typing import Any

import llama_cpp
import numpy as np


def last_logits(llama: llama_cpp.Llama) -> np.ndarray:
    pointer = llama_cpp.llama_get_logits_ith(llama.ctx, -1)
    return np.ctypeslib.as_array(pointer, (llama.n_vocab(),)).copy()


def follow(llama: llama_cpp.Llama, prompt: list[int], forced: list[int] | None, n: int) -> tuple[list[int], np.ndarray]:
    """Prompt at once, then one token at a time: the `n` tokens taken and the logits (n, n_vocab) before each.

    The tokens are `forced`, or where that is None, the most likely ones.
    """
    llama.reset()
    llama.eval(prompt)
    tokens: list[int] = []
    rows = np.empty((n, llama.n_vocab()), np.float32)
    for i in range(n):
        rows[i] = last_logits(llama)
        tokens.append(int(rows[i].argmax()) if forced is None else forced[i])
        if i + 1 < n:
            llama.eval(tokens[-1:])
    return tokens, rows


def losses(llama: llama_cpp.Llama, window: list[int]) -> np.ndarray:
    """-ln p of each token of the window but the first, given those before it."""
    llama.reset()
    llama.eval(window)
    found = np.empty(len(window) - 1)
    for i, token in enumerate(window[1:]):
        row = llama.scores[i].astype(np.float64)
        row -= row.max()
        found[i] = np.log(np.exp(row).sum()) - row[token]
    return found


def main(p: dict[str, Any]) -> None:
    llama = llama_cpp.Llama(
        p["model"],
        n_ctx=p["n_ctx"],
        n_batch=p["n_ctx"],
        n_ubatch=512,
        n_threads=p["n_threads"],
        n_threads_batch=p["n_threads"],
        flash_attn=p["flash_attn"],
        logits_all=bool(p.get("windows")),
        verbose=False,
    )
    if p.get("windows"):
        np.save(p["out"] + ".npy", np.concatenate([losses(llama, window) for window in p["windows"]]))
        return
    forced = p["forced"] or [None] * len(p["prompts"])
    done = [follow(llama, prompt, f, p["n_predict"]) for prompt, f in zip(p["prompts"], forced, strict=True)]
    np.save(p["out"] + ".npy", np.stack([rows for _, rows in done]))
    with open(p["out"] + ".json", "w", encoding="utf-8") as file:
        json.dump([tokens for tokens, _ in done], file)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
