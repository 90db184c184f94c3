"""benchmarks/gpu.py measures something on any CUDA device. On an emulated one: the figures mean nothing, the program runs."""

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed: pip install '.[cuda]'")

from cuda_device import EmulatedDevice

from pyggml.dtypes import GGMLType

FILE = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
TINY = {
    "embedding_length": 128, "block_count": 2, "feed_forward_length": 192, "attention.head_count": 2,
    "attention.head_count_kv": 1, "attention.key_length": 64, "attention.value_length": 64, "rope.dimension_count": 64,
    "context_length": 256, "vocab_size": 96,
}  # fmt: skip


@pytest.fixture(scope="module")
def program():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FILE.parent))  # as where it is run as a program
        return loaded()


def loaded():
    spec = importlib.util.spec_from_file_location("gpu_benchmark", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_everything_is_measured(program):
    device = EmulatedDevice()
    bench = program.Bench(device, rotate=1 << 14, seconds=0.01)
    assert bench.copy(1 << 16) > 0 and bench.node(8) > 0
    assert set(bench.product(GGMLType.F16, 128, 64, 1)) == {"us", "bytes/s", "flop/s"}
    assert bench.attention(64, 1, 2, 1, 64)["us"] > 0
    figures = bench.model(GGMLType.F16, TINY, prompt=16)
    assert set(figures) == {"prefill tokens/s", "decode tokens/s", "decode bytes/s"} and all(
        f > 0 for f in figures.values()
    )
    bench.backend.close()
    assert not device.gpu.allocations, "memory is left over"


def test_without_a_gpu_it_says_so(program, monkeypatch, capsys):
    import pyggml.backend.cuda

    monkeypatch.setattr(pyggml.backend.cuda, "why_no_cuda", lambda: "there is none")
    assert program.main([]) == 1
    assert capsys.readouterr().err == "nothing to measure: there is none\n"
