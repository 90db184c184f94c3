"""How many cells of the cache a graph on a GPU sees: few lengths, each of which keeps its captured graph while a text grows."""

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed: pip install '.[cuda]'")

from cuda_device import EmulatedDevice
from cuda_recording import RecordingGPU
from tiny_model import write_llama

from pyggml.backend.cpu import CPUDevice
from pyggml.backend.cuda.device import CudaDevice
from pyggml.backend.cuda.plan import CudaPlan
from pyggml.memory import kv, kv_tensors
from pyggml.memory.kv_tensors import CELL_STEP, pad_cells
from pyggml.model.model import Model
from pyggml.runtime.context import Context


def test_lengths_are_four_between_powers_of_two_and_a_quarter_too_long_at_most():
    lengths = [pad_cells(n, few_shapes=True) for n in range(1, 70_000)]
    assert lengths[2048:65536] == sorted(lengths[2048:65536])
    for n, length in enumerate(lengths, 1):
        assert length >= n and length % CELL_STEP == 0
        assert length - n < max(CELL_STEP, n / 4)
    for power in (4096, 16384, 32768):
        assert len({length for length in lengths if power < length <= 2 * power}) == 4
    assert {pad_cells(n, few_shapes=True) for n in range(1, 2049)} == {pad_cells(n) for n in range(1, 2049)}


@pytest.fixture
def few_cells(monkeypatch):
    for module in (kv, kv_tensors):
        monkeypatch.setattr(module, "CELL_STEP", 4)


@pytest.fixture
def path(tmp_path):
    return write_llama(tmp_path / "m.gguf", head_k=64, head_v=64)


def test_a_text_that_grows_captures_few_graphs_and_replays_them(few_cells, path):
    device = CudaDevice(RecordingGPU())
    model = Model.load(path, devices=[device], n_gpu_layers=99)
    context = Context(model, n_ctx=128)
    seen: list[int] = []
    for _ in range(128):
        context.decode([1])
        (latest, *_) = reversed(context._schedules.values())
        (plan,) = (split.plan for split in latest[1].splits if isinstance(split.plan, CudaPlan))
        if not seen or seen[-1] != id(plan):
            seen.append(id(plan))
            assert plan.graph is None and plan.runs == 1
        else:
            assert plan.graph is not None and plan.runs > 1
    lengths = {pad_cells(n, few_shapes=True) for n in range(1, 129)}
    assert len(seen) == len(lengths) == 16, "of 4 cells each there would be 32"
    context.close()
    model.close()


def test_cells_too_many_change_nothing(few_cells, path):
    def decoded(device: CudaDevice | None) -> tuple[np.ndarray, int]:
        """Logits, and the cells that the last graph sees."""
        model = Model.load(path, devices=[device] if device else [], n_gpu_layers=99, cpu=CPUDevice())
        context = Context(model, n_ctx=64, n_ubatch=40)
        found = [context.decode([(7 * i) % 90 for i in range(37)]), *(context.decode([i]) for i in range(4))]
        n_kv = max(key[0].memory[0].n_kv for key in context._schedules._made)  # type: ignore[index]
        context.close()
        model.close()
        return np.concatenate([f.ravel() for f in found]), n_kv

    (here, n_here), (there, n_there) = decoded(EmulatedDevice()), decoded(None)
    assert (n_here, n_there) == (48, 44)
    assert ((here - there) ** 2).sum() <= 1e-5 * (there**2).sum()
