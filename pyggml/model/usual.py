"""The kernels that most models need, for who wants them compiled before anybody waits: a server, before it listens.

Owns which types and shapes are usual: a llama layer with each of the common types of weights and both common sizes of
heads, for a prompt and for a single token. Must not know who asks.
"""

from __future__ import annotations

from pyggml.backend.base import Buffer, Device, Usage
from pyggml.backend.pack import pack
from pyggml.backend.scheduler import Scheduler
from pyggml.dtypes import GGMLType
from pyggml.jit import Job
from pyggml.model import architecture_of
from pyggml.model.architecture import Weights
from pyggml.model.kv_cache import KVCache
from pyggml.ops import Op
from pyggml.tensor import Tensor

TYPES = (GGMLType.Q4_K, GGMLType.Q6_K, GGMLType.Q8_0, GGMLType.Q4_0, GGMLType.F16)
HEADS = (64, 128)
PROMPT = 32  # tokens: tiles are made for any number from a few on
CELLS = 256
_EMBD, _FF, _VOCAB, _HEADS_KV = 512, 1024, 256, 2


def _metadata(head: int) -> dict[str, object]:
    llama = {
        "context_length": CELLS,
        "embedding_length": _EMBD,
        "block_count": 1,
        "feed_forward_length": _FF,
        "attention.head_count": _EMBD // head,
        "attention.head_count_kv": _HEADS_KV,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.dimension_count": head,
        "vocab_size": _VOCAB,
    }
    return {"general.architecture": "llama", **{f"llama.{key}": value for key, value in llama.items()}}


def usual_kernels(device: Device) -> list[Job]:
    """Begin to compile those that this machine lacks for the CPU device; the jobs to wait for (jit.wait)."""
    jobs: dict[Job, None] = {}
    backend = device.open(1)
    scheduler = Scheduler([backend])
    try:
        for dtype in TYPES:
            for head in HEADS if dtype == TYPES[0] else HEADS[:1]:
                for transposed in (False, True) if dtype == TYPES[0] else (False,):
                    jobs |= dict.fromkeys(_jobs(device, scheduler, dtype, head, transposed))
    finally:
        scheduler.close()
        backend.close()
    return list(jobs)


def _jobs(device: Device, scheduler: Scheduler, dtype: GGMLType, head: int, transposed: bool) -> list[Job]:
    metadata = _metadata(head)
    architecture = architecture_of(metadata)
    config = architecture.config(metadata)
    weights = Weights(layers=[{}])
    vocabulary = Tensor(dtype, (_EMBD, _VOCAB), name="token_embd.weight")
    for spec in architecture.specs(config, {"token_embd.weight": vocabulary}):
        if spec.required:
            kept = dtype if spec.op in (Op.MUL_MAT, Op.GET_ROWS) else GGMLType.F32
            group = weights.layers[0] if spec.layer == 0 else weights.top
            group[spec.key] = Tensor(kept, (*spec.ne, 1, 1, 1)[:4], name=spec.name)
    cache = KVCache(
        [device], CELLS, config.n_embd_head_k, config.n_embd_head_v, config.n_head_kv, transposed_v=transposed
    )
    buffers: list[Buffer] = []
    jobs: list[Job] = []
    try:
        buffers += pack(device, [*weights.top.values(), *weights.layers[0].values()], Usage.WEIGHTS)
        for n_tokens in (PROMPT, 1):
            built = architecture.build(config, weights, cache, n_tokens, CELLS, 1)
            jobs += scheduler.schedule(built.graph).begin()
    finally:
        cache.free()
        for buffer in buffers:
            buffer.free()
    return jobs
