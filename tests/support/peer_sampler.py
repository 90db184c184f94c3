"""Runs stock samplers: `python peer_sampler.py IN.npz OUT.npz`, in a process of the stock library.

Owns the calls to llama_sampler_*; must not know pyggml. IN holds `jobs` (JSON: a list of {"stages": [[name, *args]],
"logits": key, "ids": key or null, "history": [token], "draw": bool, "times": n}), the arrays they name, (rows, n), and
if a stage needs one, `vocab`: the path of a GGUF file.
OUT has for job i: size_i, selected_i, sorted_i (rows) and, one row after the other, ids_i, logits_i, p_i; names (JSON);
with a vocabulary its `eot`.
One chain lives through all rows, with its random numbers; with "draw" it accepts what it selects. us_i are median
microseconds: of a whole draw, and of it without filling the array of candidates; "times": more draws than rows.
"""

import ctypes
import json
import sys
import time

import llama_cpp as lib
import numpy as np

DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


def load_vocab(path):
    """A model without weights: it lives as long as the process."""
    lib.llama_backend_init()
    params = lib.llama_model_default_params()
    params.vocab_only = True
    return lib.llama_model_get_vocab(lib.llama_model_load_from_file(path.encode(), params))


def stage(name, args, n_vocab, vocab):
    if name == "infill":
        return lib.llama_sampler_init_infill(vocab)
    if name == "dry":
        *numbers, breakers = args
        texts = (ctypes.c_char_p * len(breakers))(*(text.encode() for text in breakers))
        return lib.llama_sampler_init_dry(vocab, *numbers, texts, len(breakers))
    if name == "logit_bias":
        pairs = (lib.llama_logit_bias * len(args))(*((token, bias) for token, bias in args))
        return lib.llama_sampler_init_logit_bias(n_vocab, len(args), pairs)
    if name == "penalties":
        return lib.llama_sampler_init_penalties(n_vocab, *args)
    return getattr(lib, f"llama_sampler_init_{name}")(*args)


def apply(chain, ids, logits):
    data = np.empty(len(logits), DATA)
    data["id"], data["logit"], data["p"] = ids, logits, 0
    pointer = ctypes.cast(data.ctypes.data, ctypes.POINTER(lib.llama_token_data))
    array = lib.llama_token_data_array(data=pointer, size=len(data), selected=-1, sorted=False)
    filled = time.perf_counter()
    lib.llama_sampler_apply(chain, ctypes.byref(array))
    first = (ctypes.addressof(array.data.contents) - data.ctypes.data) // DATA.itemsize  # XTC moves the beginning
    return filled, data[first : first + array.size], array.selected, array.sorted


def main(source, target):
    given, out, names = np.load(source), {}, []
    vocab = load_vocab(str(given["vocab"])) if "vocab" in given else None
    for i, job in enumerate(json.loads(str(given["jobs"]))):
        rows = given[job["logits"]]
        n = rows.shape[1]
        ids = given[job["ids"]] if job.get("ids") else np.arange(n, dtype=np.int32)
        chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        for name, *args in job["stages"]:
            lib.llama_sampler_chain_add(chain, stage(name, args, n, vocab))
        count = lib.llama_sampler_chain_n(chain)
        names.append([lib.llama_sampler_name(lib.llama_sampler_chain_get(chain, k)).decode() for k in range(count)])
        for token in job.get("history", ()):
            lib.llama_sampler_accept(chain, token)
        results, seconds = [], []
        for k in range(max(job.get("times", 0), len(rows))):
            start = time.perf_counter()
            filled, data, selected, is_sorted = apply(chain, ids, rows[k % len(rows)])
            if job.get("draw"):
                lib.llama_sampler_accept(chain, int(data["id"][selected]))
            end = time.perf_counter()
            seconds.append((end - start, end - filled))
            if k < len(rows):
                results.append((data, selected, is_sorted))
        lib.llama_sampler_free(chain)
        out[f"size_{i}"] = [len(data) for data, _, _ in results]
        out[f"selected_{i}"] = [selected for _, selected, _ in results]
        out[f"sorted_{i}"] = [is_sorted for _, _, is_sorted in results]
        out[f"us_{i}"] = np.median(seconds, axis=0) * 1e6
        for key, field in ("ids", "id"), ("logits", "logit"), ("p", "p"):
            out[f"{key}_{i}"] = np.concatenate([data[field] for data, _, _ in results])
    if vocab is not None:
        out["eot"] = lib.llama_vocab_eot(vocab)
    np.savez(target, names=json.dumps(names), **out)


if __name__ == "__main__":
    main(*sys.argv[1:])
