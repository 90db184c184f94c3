"""The kernels that most models need, for who wants them compiled before anybody waits: a server, before it listens.

Owns which types and shapes are usual: a llama layer with each of the common types of weights and both common sizes of
heads, for a prompt and for a single token.
"""

from __future__ import annotations

from pyggml.backend.base import Buffer, Device, Usage
from pyggml.backend.pack import pack
from pyggml.backend.scheduler import Scheduler
from pyggml.dtypes import GGMLType
from pyggml.jit import Job
from pyggml.memory import MemoryOptions, allocate, make_memory
from pyggml.memory.kv_tensors import KVShape
from pyggml.model import make_modules
from pyggml.model.graph import GraphBuilder, UbatchShape
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
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


def blank_weights(modules: CausalLM, dtype: GGMLType) -> list[Tensor]:
    """A tensor for each weight that must be there: matrices of this type, the rest F32. They are to be placed yet."""
    made = []
    for module in modules.modules():
        for weight in module.own():
            if weight.required:
                weight.tensor = Tensor(dtype if len(weight.ne) > 1 else GGMLType.F32, weight.ne, name=weight.name)
                made.append(weight.tensor)
    return made


def _jobs(device: Device, scheduler: Scheduler, dtype: GGMLType, head: int, transposed: bool) -> list[Job]:
    hp = Hparams(_metadata(head), "llama")
    modules = make_modules(hp, {"token_embd.weight": Tensor(dtype, (_EMBD, _VOCAB), name="token_embd.weight")})
    weights = blank_weights(modules, dtype)
    memory = make_memory(modules.needs(), MemoryOptions(CELLS, transposed_v=transposed))
    buffers: list[Buffer] = []
    jobs: list[Job] = []
    try:
        allocate(memory, [device], lambda graph, inputs: None)
        buffers += pack(device, weights, Usage.WEIGHTS)
        for n_tokens in (PROMPT, 1):
            built = modules.build(GraphBuilder(hp, memory, UbatchShape(n_tokens, 1, (KVShape(CELLS),))))
            jobs += scheduler.schedule(built.graph).begin()
    finally:
        memory.free()
        for buffer in buffers:
            buffer.free()
    return jobs
