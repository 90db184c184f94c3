"""Memories of every kind on the reference backend, for tests: what their layers need, and what a graph would write into them.

Owns the numbers that stand for keys, values and states: a token's key is its number and its position when it was
computed, its value the number, its sequence's state the sum of all numbers.
"""

from typing import Any

import numpy as np

from pyggml import ops
from pyggml.backend.reference import ReferenceDevice
from pyggml.backend.scheduler import Scheduler
from pyggml.dtypes import GGMLType
from pyggml.memory import MemoryOptions, Need, SharedKV, allocate, make_memory
from pyggml.memory.kv import KVCache
from pyggml.memory.kv_tensors import KVLayer
from pyggml.memory.layered import Layered
from pyggml.memory.recurrent import RecurrentState, StateLayer
from pyggml.memory.window import Window
from pyggml.tensor import Tensor

N_SEQ, N_CTX, WINDOW = 3, 256, 5
HEAD = 2


class Runner:
    """Runs the graphs that move cells."""

    def __init__(self) -> None:
        self.device = ReferenceDevice()
        self.scheduler = Scheduler([self.device.open(1)])

    def __call__(self, graph: Any, inputs: Any) -> None:
        schedule = self.scheduler.schedule(graph)
        for tensor, values in inputs:
            schedule.set_input(tensor, values)
        schedule.run()


def add_turn(keys: Tensor, positions: Tensor, n_ctx: int) -> Tensor:
    """Stands for a rotation: position is added to the last element of the key, so that a shift can be seen."""
    _, n_head, n = keys.ne[:3]
    number, pos = (ops.view(keys, (1, n_head, n), keys.nb[1:3], at) for at in (0, keys.nb[0]))
    by = ops.reshape(ops.cpy(positions, Tensor(GGMLType.F32, positions.ne)), 1, 1, n)
    number, pos = (ops.cpy(t, Tensor(GGMLType.F32, t.ne)) for t in (number, pos))
    return ops.concat(number, ops.add(pos, by), 0)


LAYER = KVLayer(0, HEAD, HEAD, 1, add_turn)
STATES = StateLayer(0, {"s": 3})
NEEDS = {
    "all": [Need(LAYER)],
    "window": [Need(LAYER, WINDOW)],
    "chunked": [Need(LAYER, WINDOW, chunked=True)],
    "both": [Need(LAYER), Need(LAYER._replace(il=1), WINDOW)],
    "chunks": [Need(LAYER, WINDOW, chunked=True), Need(LAYER._replace(il=1))],
    "full": [Need(LAYER, WINDOW), Need(LAYER._replace(il=1))],
    "keys": [Need(LAYER._replace(head_v=1, v_in_k=True))],
    "shared": [Need(LAYER, WINDOW), Need(shared=SharedKV(1, 0))],
    "states": [Need(states=STATES)],
    "hybrid": [Need(LAYER), Need(states=STATES._replace(il=1))],
    "three": [Need(states=STATES), Need(LAYER._replace(il=1), WINDOW), Need(LAYER)],
}
"""Layers of each kind of memory; of `full`, windows have as much room as the rest; of `three`, layer 0 has states and keys."""


def memory_of(kind: str, transposed_v: bool, n_ubatch: int = 8) -> Layered:
    """`kind`: a name of NEEDS, and whether sequences share their cells, as in "both unified"."""
    name, *more = kind.split()
    options = MemoryOptions(
        N_CTX, n_ubatch, N_SEQ, "unified" in more, GGMLType.F32, GGMLType.F32, transposed_v, name == "full"
    )
    memory = make_memory(NEEDS[name], options)
    runner = Runner()
    allocate(memory, [runner.device] * 2, runner)
    return memory


def caches(memory: Layered) -> list[KVCache]:
    return [part for part in memory.parts if isinstance(part, KVCache)]


def first_seen(window: Window, pos: int) -> int:
    """The first position that a token at `pos` sees (llama-hparams.h: is_masked_swa)."""
    return pos - pos % WINDOW if window.chunked else pos - WINDOW + 1


def rows(cache: KVCache, tensor: Any) -> np.ndarray:
    """(stream, cell, element)"""
    flat = np.frombuffer(tensor.buffer.get(tensor), np.float32)
    if cache.transposed_v and any(tensor is v for v in cache.v):
        return flat.reshape(cache.n_streams, HEAD, cache.n_cells).transpose(0, 2, 1)
    return flat.reshape(cache.n_streams, cache.n_cells, HEAD)


def numbers(cache: KVCache) -> np.ndarray:
    """(stream, cell): the number of the token that lies there, as its value has it."""
    return rows(cache, cache.k[0] if cache.v[0] is None else cache.v[0])[..., 0]


def state(states: RecurrentState, seq: int) -> np.ndarray:
    """(3,): what the first layer keeps of a sequence."""
    tensor = states.states[0]["s"]
    assert tensor.buffer is not None
    return np.frombuffer(tensor.buffer.get(tensor, seq * tensor.nb[1], tensor.nb[1]), np.float32)


def write(memory: Layered, ub: Any, placement: Any) -> None:
    """What a graph would."""
    for part, placed in zip(memory.parts, placement.parts, strict=True):
        each = ub.n // ub.n_seqs
        if isinstance(part, KVCache):
            for i in range(ub.n):
                stream = ub.first + i // each if part.n_streams > 1 else 0
                cell = int(placed.cells[i])
                for tensor, value in ((part.k[0], (ub.tokens[i], ub.pos[i])), (part.v[0], (ub.tokens[i], 0))):
                    if tensor is None:
                        continue
                    data = rows(part, tensor).copy()
                    data[stream, cell] = value
                    if part.transposed_v and tensor is part.v[0]:
                        data = data.transpose(0, 2, 1)
                    assert tensor.buffer is not None
                    tensor.buffer.set(tensor, np.ascontiguousarray(data, np.float32).reshape(-1).view(np.uint8))
        else:
            assert isinstance(part, RecurrentState)
            tensor = part.states[0]["s"]
            assert tensor.buffer is not None
            for i, slot in enumerate(placed.slots.tolist()):
                new = state(part, slot) + np.float32(ub.tokens[i * each : (i + 1) * each].sum())
                tensor.buffer.set(tensor, new.tobytes(), slot * tensor.nb[1])
