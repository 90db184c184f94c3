"""What runs inside a process of the stock library: `python peer_worker.py COMMAND JSON`, results in the file named "out";
with the command `converse`, one such request after the other, each a JSON line {"command", "p", "log"} on standard input,
answered by {"error"} when it is done.

Owns the calls into llama_cpp; must not know pyggml, so that the peer's process holds nothing of ours.
"""

import contextlib
import ctypes
import json
import os
import sys
import traceback
from collections.abc import Iterator
from typing import Any

import llama_cpp
import numpy as np


def library(soname: str) -> ctypes.CDLL:
    """The copy that libllama itself is linked to: already loaded, so it is found by its soname alone."""
    return ctypes.CDLL(soname)


def add_servers(endpoints: list[str]) -> None:
    ggml, rpc = library("libggml.so.0"), library("libggml-rpc.so.0")
    rpc.ggml_backend_rpc_add_server.restype = ctypes.c_void_p
    rpc.ggml_backend_rpc_add_server.argtypes = [ctypes.c_char_p]
    ggml.ggml_backend_register.argtypes = [ctypes.c_void_p]
    for endpoint in endpoints:
        registry = rpc.ggml_backend_rpc_add_server(endpoint.encode())
        if not registry:
            raise SystemExit(f"peer: no device at {endpoint}")
        ggml.ggml_backend_register(registry)


@contextlib.contextmanager
def open_model(p: dict[str, Any], **more: Any) -> Iterator[llama_cpp.Llama]:
    add_servers(p["endpoints"])
    n_threads = p["n_threads"]
    llama = llama_cpp.Llama(
        p["model"],
        n_ctx=p["n_ctx"],
        n_batch=p["n_batch"],
        n_ubatch=p["n_ubatch"],
        n_threads=n_threads,
        n_threads_batch=n_threads,
        flash_attn=p["flash_attn"],
        type_k=p["type_k"],
        type_v=p["type_v"],
        n_gpu_layers=p["n_gpu_layers"],
        tensor_split=p["tensor_split"],
        **more,
    )
    with contextlib.closing(llama):
        yield llama


@contextlib.contextmanager
def bare_model(p: dict[str, Any]) -> Iterator[Any]:
    """The model alone, for contexts that are opened on it."""
    add_servers(p["endpoints"])
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = p["n_gpu_layers"]
    model = llama_cpp.llama_model_load_from_file(p["model"].encode(), params)
    if not model:
        raise SystemExit(f"peer: cannot load {p['model']}")
    try:
        yield model
    finally:
        llama_cpp.llama_model_free(model)


def logits(p: dict[str, Any]) -> None:
    with open_model(p, logits_all=True) as llama:
        llama.eval(p["tokens"])
        np.save(p["out"], llama.scores[: len(p["tokens"])])


def generate(p: dict[str, Any]) -> None:
    with open_model(p, seed=p["seed"]) as llama:
        generate_with(llama, p)


def generate_with(llama: llama_cpp.Llama, p: dict[str, Any]) -> None:
    prompt = p["tokens"]
    if prompt is None:
        prompt = llama.tokenize(p["prompt"].encode(), add_bos=True, special=True)
    made: list[int] = []
    for token in llama.generate(prompt, **p["sampling"]):
        if not p["ignore_eos"] and llama_cpp.llama_vocab_is_eog(llama._model.vocab, token):
            break
        made.append(token)
        if len(made) == p["n_predict"]:
            break
    text = llama.detokenize(made, prev_tokens=prompt).decode("utf-8", errors="replace")
    write(p, {"prompt_tokens": list(prompt), "tokens": made, "text": text})


def steps(p: dict[str, Any]) -> None:
    """Several contexts of one model, opened, used and freed in the given order; the logits after each decode."""
    contexts: dict[str, Any] = {}
    with bare_model(p) as model:
        try:
            take_steps(p, model, contexts)
        finally:
            for context in contexts.values():
                llama_cpp.llama_free(context)


def take_steps(p: dict[str, Any], model: Any, contexts: dict[str, Any]) -> None:
    n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    positions: dict[str, int] = {}
    adapters = [llama_cpp.llama_adapter_lora_init(model, path.encode()) for path in p.get("adapters", [])]
    if not all(adapters):
        raise SystemExit("peer: an adapter was refused")
    rows = []
    for action, name, *rest in p["steps"]:
        if action == "open":
            params = llama_cpp.llama_context_default_params()
            for field, value in (p["context"] | (rest[0] if rest else {})).items():
                setattr(params, field, value)
            context, positions[name] = llama_cpp.llama_init_from_model(model, params), 0
            if not context:
                raise SystemExit(f"peer: no context for {name}")
            contexts[name] = context
        elif action == "free":
            llama_cpp.llama_free(contexts.pop(name))
        elif action == "clear":
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(contexts[name]), True)
            positions[name] = 0
        elif action == "shift":
            shift(contexts[name], positions[name], *rest)
            positions[name] -= rest[1]
        elif action == "adapt":
            adapt(contexts[name], [adapters[i] for i, _ in rest[0]], [scale for _, scale in rest[0]])
        elif action == "steer":
            steer(contexts[name], *rest)
        elif action == "decode":
            rows.append(decode(contexts[name], rest[0], positions[name], n_vocab))
            positions[name] += len(rest[0])
        else:
            raise SystemExit(f"peer: what is {action}?")
    np.save(p["out"], np.array(rows))


def adapt(context: Any, adapters: list[Any], scales: list[float]) -> None:
    """Use these LoRA adapters and no others."""
    n = len(adapters)
    handles = (llama_cpp.llama_adapter_lora_p_ctypes * n)(*adapters)
    if llama_cpp.llama_set_adapters_lora(context, handles, n, (ctypes.c_float * n)(*scales)):
        raise SystemExit("peer: adapters were refused")


def steer(context: Any, data: list[float], n_embd: int, first: int, last: int) -> None:
    """Add control vectors (of layers 1, 2, ..., n_embd elements each) to layers `first` to `last`; no data: none any more."""
    values = (ctypes.c_float * len(data))(*data) if data else None
    if llama_cpp.llama_set_adapter_cvec(context, values, len(data), n_embd, first, last):
        raise SystemExit("peer: control vectors were refused")


def shift(context: Any, n_past: int, n_keep: int, n_discard: int) -> None:
    """As the completion tool does it when a context is full."""
    memory = llama_cpp.llama_get_memory(context)
    llama_cpp.llama_memory_seq_rm(memory, 0, n_keep, n_keep + n_discard)
    llama_cpp.llama_memory_seq_add(memory, 0, n_keep + n_discard, n_past, -n_discard)


def endless(p: dict[str, Any]) -> None:
    """Greedy tokens after a prompt, past the end of the context (tools/completion/completion.cpp)."""
    with bare_model(p) as model:
        params = llama_cpp.llama_context_default_params()
        for field, value in p["context"].items():
            setattr(params, field, value)
        context = llama_cpp.llama_init_from_model(model, params)
        if not context:
            raise SystemExit("peer: no context")
        try:
            go_on(p, model, context)
        finally:
            llama_cpp.llama_free(context)


def go_on(p: dict[str, Any], model: Any, context: Any) -> None:
    n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    new, n_past, made, n_shifts = p["tokens"], 0, [], 0
    while len(made) < p["n_predict"]:
        if n_past + len(new) >= p["context"]["n_ctx"]:
            n_discard = (n_past - p["n_keep"]) // 2
            shift(context, n_past, p["n_keep"], n_discard)
            n_past, n_shifts = n_past - n_discard, n_shifts + 1
        token = int(decode(context, new, n_past, n_vocab).argmax())
        made.append(token)
        n_past += len(new)
        new = [token]
    write(p, {"tokens": made, "n_shifts": n_shifts})


def decode(context: Any, tokens: list[int], position: int, n_vocab: int) -> np.ndarray:
    """The logits of the last token alone: micro-batches before its own have no outputs."""
    batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i] = token, position + i
        batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        batch.logits[i] = i == len(tokens) - 1
    code = llama_cpp.llama_decode(context, batch)
    llama_cpp.llama_batch_free(batch)
    if code:
        raise SystemExit(f"peer: llama_decode returned {code}")
    logits = llama_cpp.llama_get_logits_ith(context, -1)
    return np.ctypeslib.as_array(logits, (n_vocab,)).copy()


def tokenize(p: dict[str, Any]) -> None:
    add, special = p["add_special"], p["parse_special"]
    with contextlib.closing(llama_cpp.Llama(p["model"], vocab_only=True)) as llama:
        write(p, [llama.tokenize(text.encode(), add_bos=add, special=special) for text in p["texts"]])


def quantize(p: dict[str, Any]) -> None:
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize, params.pure = p["ftype"], True, p["pure"]
    code = llama_cpp.llama_model_quantize(p["src"].encode(), p["out"].encode(), ctypes.byref(params))
    if code:
        raise SystemExit(f"peer: llama_model_quantize({p['src']}, ftype {p['ftype']}) returned {code}")


def serve(p: dict[str, Any]) -> None:
    ggml, rpc = library("libggml.so.0"), library("libggml-rpc.so.0")
    ggml.ggml_backend_dev_by_type.restype = ctypes.c_void_p
    cpu = ggml.ggml_backend_dev_by_type(0)  # GGML_BACKEND_DEVICE_TYPE_CPU
    start = rpc.ggml_backend_rpc_start_server
    start.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p]
    cache = p["cache_dir"].encode() if p["cache_dir"] else None
    n = p["n_devices"]
    start(p["endpoint"].encode(), cache, p["n_threads"], n, (ctypes.c_void_p * n)(*[cpu] * n))
    raise SystemExit(f"peer: no server could be started at {p['endpoint']}")


def write(p: dict[str, Any], result: Any) -> None:
    with open(p["out"], "w", encoding="utf-8") as file:
        json.dump(result, file)


COMMANDS = {f.__name__: f for f in (logits, generate, steps, endless, tokenize, quantize, serve)}


def converse() -> None:
    """Requests until the input ends. What the library prints meanwhile goes into each request's own log."""
    answers = os.dup(1)
    flush = ctypes.CDLL(None).fflush
    for line in sys.stdin:
        request = json.loads(line)
        assert not request["p"].get("endpoints"), "servers stay registered with the process: use one for each request"
        error = None
        log = os.open(request["log"], os.O_WRONLY | os.O_APPEND)
        for descriptor in (1, 2):
            os.dup2(log, descriptor)
        os.close(log)
        try:
            COMMANDS[request["command"]](request["p"])
        except (Exception, SystemExit) as failure:
            traceback.print_exc()
            error = f"{type(failure).__name__}: {failure}"
        sys.stdout.flush()
        sys.stderr.flush()
        flush(None)
        os.write(answers, json.dumps({"error": error}).encode() + b"\n")


if __name__ == "__main__":
    if sys.argv[1] == "converse":
        converse()
    else:
        COMMANDS[sys.argv[1]](json.loads(sys.argv[2]))
