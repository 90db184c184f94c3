"""No graph of any architecture leaves the GPU in the middle: the CUDA backend computes every node that models build.

On a GPU that runs no kernel: which nodes it takes is asked, not what they say.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed: pip install '.[cuda]'")

import tiny_encoders
import tiny_t5
from arch_files import DENOISERS, NAMES, NOT_THERE, known
from arch_variants import VARIANTS, all_files
from cuda_device import EmulatedDevice
from cuda_recording import RecordingGPU
from peer_archs import ArchPeer
from written_archs import WRITTEN

from pyggml.backend.cuda.device import CudaDevice
from pyggml.kernels import cuda
from pyggml.model.model import Model
from pyggml.ops import VIEW_OPS, Op
from pyggml.runtime import encoding
from pyggml.runtime.context import Context
from pyggml.runtime.embedder import Embedder
from pyggml.tensor import Tensor

FILES = [*(name for name in NAMES if known(name) and name not in (*NOT_THERE, *DENOISERS)), *WRITTEN, *VARIANTS]
SHAPES = ((1, 256, 1), (40, 256, 40))
"""Tokens, padded cells, outputs: of a token, and of a prompt."""


def refused(path: Path, shapes: tuple[tuple[int, int, int], ...] = SHAPES) -> Iterator[str]:
    """What of the graphs of these shapes the GPU does not compute, with attention fused and unfused: op, place and reason."""
    device = CudaDevice(RecordingGPU())
    model = Model.load(path, devices=[device], n_gpu_layers=99)
    try:
        for flash in (True, False):
            context = Context(model, n_ctx=256, n_ubatch=256, flash_attn=flash)
            for shape in shapes:
                graph = context.schedule_for(*shape)[0].graph
                for node in graph.nodes:
                    if node.op not in VIEW_OPS and 0 not in node.ne and not device.supports_op(node):
                        yield f"{Op(node.op).name} {node.name}: {device.why_not(node)}"
            context.close()
    finally:
        model.close()


@pytest.mark.parametrize("name", tiny_t5.NAMES)
def test_every_node_of_an_encoder_and_a_decoder_stays_on_the_gpu(name: str) -> None:
    device = CudaDevice(RecordingGPU())
    model = Model.load(tiny_t5.ensure_t5()[name], devices=[device], n_gpu_layers=99)
    for flash in (True, False):
        context = Context(model, n_ctx=256, n_ubatch=256, flash_attn=flash)
        graphs = [context.schedule_for(*shape)[0].graph for shape in SHAPES]
        graphs.append(context._schedules.ready(encoding.shape(context, 40), ())[0].graph)
        nodes = [node for graph in graphs for node in graph.nodes if node.op not in VIEW_OPS]
        refused = {
            f"{Op(node.op).name} {node.name}: {device.why_not(node)}" for node in nodes if not device.supports_op(node)
        }
        assert len(nodes) > 250 and sorted(refused) == []
        context.close()
    model.close()


class Asked(CudaDevice):
    """Notes what it is asked for and does not compute."""

    def __init__(self) -> None:
        super().__init__(RecordingGPU())
        self.refused: set[str] = set()
        self.asked = 0

    def supports_op(self, node: Tensor) -> bool:
        found = super().supports_op(node)
        self.asked += 1
        if not found:
            self.refused.add(f"{Op(node.op).name} {node.name}: {self.why_not(node)}")
        return found


@pytest.mark.parametrize("name", [*DENOISERS, *tiny_encoders.NAMES])
def test_every_node_of_models_of_whole_texts_stays_on_the_gpu(arch_peer: ArchPeer, name: str) -> None:
    path = {**arch_peer.files(), **tiny_encoders.ensure_encoders()}[name]
    device = Asked()
    model = Model.load(path, devices=[device], n_gpu_layers=99)
    try:
        for flash in (True, False):
            embedder = Embedder(model, flash_attn=flash)
            embedder.encode([[5, 6, 7, 8, 9]])
            embedder.close()
    finally:
        model.close()
    assert device.asked > 40 and sorted(device.refused) == []


@pytest.mark.parametrize("name", FILES)
def test_every_node_stays_on_the_gpu(arch_peer: ArchPeer, name: str) -> None:
    assert sorted(set(refused(all_files(arch_peer)[name]))) == []


def test_streams_and_an_indexer_give_the_logits_of_the_cpu(arch_peer: ArchPeer) -> None:
    """On an emulated GPU, in one split behind the embeddings: nothing goes to the CPU in the middle."""
    path, device = all_files(arch_peer)["glm5-next-chosen"], EmulatedDevice()
    found: list[np.ndarray] = []
    for devices in ([device], []):
        model = Model.load(path, devices=devices, n_gpu_layers=99)
        context = Context(model, n_ctx=256)
        found.append(np.concatenate([context.decode(tokens, logits="all") for tokens in ([3, 1, 4, 1, 5, 9], [2])]))
        splits = [len(schedule.splits) for _, schedule in context._schedules.values()]
        assert splits == ([2, 2] if devices else [1, 1])
        context.close()
        model.close()
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-4)
    assert device.gpu.launches > 200


@pytest.mark.parametrize(
    ("op", "name"),
    [
        (Op.SSM_CONV, "mamba-dense"), (Op.ADD_ID, "gpt-oss-moe"), (Op.GATED_DELTA_NET, "qwen3next-moe"),
        (Op.CONCAT, "deepseek2-moe"), (Op.NORM, "gpt2-dense"), (Op.RWKV_WKV7, "rwkv7-gated"),
        (Op.DSV4_HC_COMB, "deepseek4-chosen"), (Op.DSV4_HC_PRE, "qwen4exp-moe"), (Op.DSV4_HC_POST, "glm5-next-moe"),
        (Op.LIGHTNING_INDEXER, "glm5-next-chosen"),
    ],
)  # fmt: skip
def test_an_op_that_is_missing_is_named(
    arch_peer: ArchPeer, monkeypatch: pytest.MonkeyPatch, op: Op, name: str
) -> None:
    monkeypatch.delitem(cuda.FAMILIES, op)
    found = set(refused(all_files(arch_peer)[name], SHAPES[:1]))
    assert found and all(line.startswith(f"{op.name} ") for line in found)
