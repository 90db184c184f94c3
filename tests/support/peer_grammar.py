"""Runs stock grammars: `python peer_grammar.py MODEL IN.json OUT.npz`, in a process of the stock library.

Owns the calls to llama_sampler_init_grammar; must not know pyggml. IN: {"ids": [token] or null for all, "jobs":
[{"grammar": text, "seed": n, "steps": n}]}. For each job i OUT has ok_i (whether the grammar was taken), tokens_i (a
random text that it allows, chosen among the ids, without the tokens that end a text) and masks_i (steps, ids) as packed
bits: which tokens are allowed before each of those and after the last; the last two columns of bits: the model's two
first tokens that end a text.
"""

import ctypes
import json
import random
import sys
from pathlib import Path

import llama_cpp as lib
import numpy as np

DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def silent(level, text, data):
    pass


def allowed(sampler, ids):
    data = np.zeros(len(ids), DATA)
    data["id"] = ids
    pointer = ctypes.cast(data.ctypes.data, ctypes.POINTER(lib.llama_token_data))
    array = lib.llama_token_data_array(data=pointer, size=len(data), selected=-1, sorted=False)
    lib.llama_sampler_apply(sampler, ctypes.byref(array))
    return data["logit"] == 0


def main(model, source, target):
    lib.llama_log_set(silent, None)
    lib.llama_backend_init()
    params = lib.llama_model_default_params()
    params.vocab_only = True
    vocab = lib.llama_model_get_vocab(lib.llama_model_load_from_file(model.encode(), params))
    given, out = json.loads(Path(source).read_text()), {}
    n = lib.llama_vocab_n_tokens(vocab)
    eog = [token for token in range(n) if lib.llama_vocab_is_eog(vocab, token)][:2]
    ids = np.array([*(given["ids"] or range(n)), *eog], np.int32)
    for i, job in enumerate(given["jobs"]):
        sampler = lib.llama_sampler_init_grammar(vocab, job["grammar"].encode(), b"root")
        out[f"ok_{i}"] = bool(sampler)
        if not sampler:
            continue
        rng, tokens, masks = random.Random(job["seed"]), [], []
        for _ in range(job["steps"]):
            mask = allowed(sampler, ids)
            masks.append(np.packbits(mask))
            choice = [int(token) for token in ids[mask] if token not in eog]
            if not choice:
                break
            tokens.append(rng.choice(choice))
            lib.llama_sampler_accept(sampler, tokens[-1])
        lib.llama_sampler_free(sampler)
        out[f"tokens_{i}"], out[f"masks_{i}"] = np.array(tokens, np.int32), np.array(masks)
    np.savez(target, ids=ids, **out)


if __name__ == "__main__":
    main(*sys.argv[1:])
