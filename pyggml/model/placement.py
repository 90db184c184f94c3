"""Which layers and weights go to which device. Owns that choice and its arithmetic; uploads nothing.

The rule is llama.cpp's (llama-model.cpp: load_tensors), in float32 as there, so that both split a model alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pyggml.backend.base import Device
from pyggml.errors import DeviceError
from pyggml.memory import MemoryOptions, make_memory
from pyggml.memory.blocks import Blocks
from pyggml.memory.kv_tensors import CELL_STEP, KVShape, KVTensors
from pyggml.model.graph import GraphBuilder, UbatchShape
from pyggml.model.layers import CausalLM
from pyggml.model.lora import Applied
from pyggml.ops import VIEW_OPS
from pyggml.tensor import Tensor


def select_devices(devices: Sequence[Device], split_mode: str, main_gpu: int) -> list[Device]:
    """The devices to spread layers over: with split mode "none" number `main_gpu` alone, none of them if it is negative.

    "layer" is all of them, and so is "row": no device here cuts a matrix into parts, and llama.cpp gives whole layers to
    those that do not either (llama.cpp: llama_prepare_model_devices). Raises DeviceError.
    """
    assert split_mode in ("none", "layer", "row"), split_mode
    if split_mode != "none" or not devices:
        return list(devices)
    if main_gpu >= len(devices):
        raise DeviceError(f"main device {main_gpu}: there are {len(devices)}, numbered from 0")
    return [devices[main_gpu]] if main_gpu >= 0 else []


def effective_split(tensor_split: Sequence[float] | None, split_mode: str) -> Sequence[float]:
    """What `split_layers` is told: nothing where one device has all, which llama.cpp then gives all of it too."""
    return () if split_mode == "none" else tensor_split or ()


def split_layers(
    n_layer: int, free: Sequence[int], n_gpu_layers: int = -1, tensor_split: Sequence[float] = ()
) -> list[int | None]:
    """For layers 0 to n_layer - 1 and, last, the output: the number of the device, None = local CPU.

    `n_gpu_layers` of these n_layer + 1, counted from the end, are offloaded (negative: all). They are spread in
    proportion to `tensor_split`, or, where it is empty or all zero, to `free` (bytes of memory of each device).
    Raises DeviceError when `tensor_split` does not fit the devices; without devices it says nothing.
    """
    n_devices = len(free)
    if not n_devices:
        return [None] * (n_layer + 1)
    if len(tensor_split) > n_devices and any(tensor_split):
        raise DeviceError(f"a tensor split over {len(tensor_split)} devices, {n_devices} are in use")
    if any(not np.isfinite(share) or share < 0 for share in tensor_split):
        raise DeviceError(f"tensor split {list(tensor_split)}: each share must be 0 or more")
    shares = np.zeros(n_devices, np.float32)
    shares[: len(tensor_split)] = tensor_split[:n_devices]
    if not shares.any():
        shares[:] = free
    if not shares.any():
        shares[:] = 1
    bounds = np.cumsum(shares, dtype=np.float32)
    bounds /= bounds[-1]
    wanted = n_layer + 1 if n_gpu_layers < 0 else min(n_gpu_layers, n_layer + 1)
    start = n_layer + 1 - wanted
    return [
        None if il < start else int(np.searchsorted(bounds, np.float32(il - start) / np.float32(wanted), side="right"))
        for il in range(n_layer + 1)
    ]


def readers(module: CausalLM, adapters: tuple[Applied, ...] = ()) -> dict[int, list[Tensor]]:
    """id(tensor of a weight or adapter) -> the nodes that read it in graphs of one token, which are built for this alone."""
    memory = make_memory(module.needs(), MemoryOptions(n_ctx=CELL_STEP))
    shapes = tuple(
        KVShape(CELL_STEP) if isinstance(part, KVTensors) else part.shape_of(1, 1) if isinstance(part, Blocks) else 1
        for part in memory.parts
    )
    graphs = []
    for wanted in module.graphs():
        shape = UbatchShape(1, 1, shapes, wanted=wanted, n_pooled=1)
        graphs.append(module.build(GraphBuilder(module.hp, memory, shape, adapters)).graph)
    weights = {id(w.tensor) for m in module.modules() for w in m.own() if w.tensor is not None}
    weights.update(id(tensor) for applied in adapters for tensor in applied.adapter.tensors())
    found: dict[int, list[Tensor]] = {}
    for node in (node for graph in graphs for node in graph.nodes):
        if node.op in VIEW_OPS:
            continue
        for source in node.src:
            root = None if source is None else source.view_src or source
            if id(root) in weights:
                found.setdefault(id(root), []).append(node)
    return found


def why_not(device: Device, nodes: Sequence[Tensor]) -> str | None:
    """Why the device cannot compute one of these, None = it can compute all."""
    for node in nodes:
        if not device.supports_op(node):
            return device.why_not(node) or "the device does not compute it"
    return None
