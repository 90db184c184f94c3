"""What runs inside a process of the stock library to quantise: `python peer_quant.py COMMAND FILE`, the file is JSON.

Owns the calls into libllama's quantiser, of which some are C++; must not know pyggml.
"""

import ctypes
import json
import sys
from typing import Any

import llama_cpp

NO_TYPE = 43  # GGML_TYPE_COUNT
INT, FLOAT, BOOL, STR = range(4)  # enum llama_model_kv_override_type
NAMES = {  # the C++ functions of llama-ext.h
    "init": "_Z16llama_quant_initPK11llama_modelPK27llama_model_quantize_params",
    "free": "_Z16llama_quant_freeP19quantize_state_impl",
    "types": "_Z25llama_quant_compute_typesP19quantize_state_impl11llama_ftypePP11ggml_tensorP9ggml_typem",
    "model": "_Z31llama_quant_model_from_metadataPK22llama_quant_model_desc",
    "allows": "_Z38llama_quant_tensor_allows_quantizationPK19quantize_state_implPK11ggml_tensor",
}


class Description(ctypes.Structure):
    """struct llama_quant_model_desc (llama-ext.h)."""

    NUMBERS = ("n_embd", "n_ff", "n_layer", "n_head", "n_head_kv", "n_expert", "n_embd_head_k", "n_embd_head_v")
    _fields_ = (("architecture", ctypes.c_char_p), *((name, ctypes.c_uint32) for name in NUMBERS))


class InitParams(ctypes.Structure):
    """struct ggml_init_params (ggml.h)."""

    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


def parameters(job: dict[str, Any], keep: list[Any]) -> Any:
    """llama_model_quantize_params; `keep` holds what they point to."""
    params = llama_cpp.llama_model_quantize_default_params()
    assert params.output_tensor_type == NO_TYPE
    for name, value in job.get("params", {}).items():
        setattr(params, name, value)
    if job.get("tensor_types"):
        overrides = (llama_cpp.llama_model_tensor_override * (len(job["tensor_types"]) + 1))()
        for override, (pattern, dtype) in zip(overrides, job["tensor_types"], strict=False):
            override.pattern, override.type = pattern.encode(), dtype
        overrides[-1].pattern, overrides[-1].type = None, NO_TYPE
        params.tt_overrides = overrides
        keep.append(overrides)
    if job.get("kv"):
        entries = (llama_cpp.llama_model_kv_override * (len(job["kv"]) + 1))()
        for entry, (key, value) in zip(entries, job["kv"], strict=False):
            entry.key = key.encode()
            if isinstance(value, bool):
                entry.tag, entry.value.val_bool = BOOL, value
            elif isinstance(value, int):
                entry.tag, entry.value.val_i64 = INT, value
            elif isinstance(value, float):
                entry.tag, entry.value.val_f64 = FLOAT, value
            else:
                entry.tag, entry.value.val_str = STR, value.encode()
        params.kv_overrides = entries
        keep.append(entries)
    return params


def files(jobs: list[dict[str, Any]]) -> list[int]:
    """The codes that llama_model_quantize returns for each job."""
    codes = []
    for job in jobs:
        keep: list[Any] = []
        params = parameters(job, keep)
        codes.append(llama_cpp.llama_model_quantize(job["src"].encode(), job["out"].encode(), ctypes.byref(params)))
    return codes


def types(models: list[dict[str, Any]]) -> list[Any]:
    """For each model: which of its tensors may be quantised, and for each ftype the types of those."""
    llama, base = ctypes.CDLL("libllama.so.0"), ctypes.CDLL("libggml-base.so.0")
    call = {name: llama[symbol] for name, symbol in NAMES.items()}
    call["model"].restype = call["init"].restype = base.ggml_init.restype = ctypes.c_void_p
    call["allows"].restype = ctypes.c_bool
    base.ggml_init.argtypes = [InitParams]
    base.ggml_free.argtypes = [ctypes.c_void_p]
    base.ggml_new_tensor.restype = ctypes.c_void_p
    base.ggml_new_tensor.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.POINTER(ctypes.c_int64)]
    base.ggml_set_name.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    call["types"].argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    call["init"].argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    call["allows"].argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    call["free"].argtypes = [ctypes.c_void_p]
    results = []
    for m in models:
        keep: list[Any] = []
        params = parameters(m, keep)
        description = Description(m["architecture"].encode(), *(m["numbers"][name] for name in Description.NUMBERS))
        model = call["model"](ctypes.byref(description))
        state = call["init"](model, ctypes.byref(params))
        context = base.ggml_init(InitParams(512 * (len(m["tensors"]) + 1), None, True))
        tensors = []
        for name, dtype, ne in m["tensors"]:
            tensor = base.ggml_new_tensor(context, dtype, 4, (ctypes.c_int64 * 4)(*ne))
            base.ggml_set_name(tensor, name.encode())
            tensors.append(tensor)
        allowed = [call["allows"](state, tensor) for tensor in tensors]
        chosen = []
        for ftype in m["ftypes"]:
            found = (ctypes.c_int * len(tensors))()
            call["types"](state, ftype, (ctypes.c_void_p * len(tensors))(*tensors), found, len(tensors))
            chosen.append(list(found))
        results.append([allowed, chosen])
        call["free"](state)
        base.ggml_free(context)
        llama_cpp.llama_model_free(model)
    return results


if __name__ == "__main__":
    with open(sys.argv[2], encoding="utf-8") as file:
        given = json.load(file)
    result = {"files": files, "types": types}[sys.argv[1]](given)
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        json.dump(result, file)
