"""One layer of SmolLM2's shape, prompt and decoding, on the emulated GPU beside the definition."""

import gguf
import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed: pip install '.[cuda]'")
from cuda_device import EmulatedDevice
from cuda_emulator import EmulatedGPU
from tiny_model import N_VOCAB, write_llama

from pyggml.backend.reference import ReferenceDevice
from pyggml.dtypes import GGMLType
from pyggml.kernels.cuda.spec import Spec
from pyggml.model.model import Model
from pyggml.runtime.context import Context

Q = gguf.GGMLQuantizationType
TOKENS = [int(t) for t in np.random.default_rng(0).integers(0, N_VOCAB, 12)]
SHAPE = {"n_layer": 1, "n_embd": 576, "n_head": 9, "n_head_kv": 3, "head_k": 64, "head_v": 64, "n_ff": 1536}


def logits(path, flash_attn: bool, devices=(), cache=(GGMLType.F16, GGMLType.F16)):
    """After a prompt, then after each of three more tokens."""
    model = Model.load(path, devices=devices, n_gpu_layers=99, cpu=ReferenceDevice())
    context = Context(model, n_ctx=256, flash_attn=flash_attn, type_k=cache[0], type_v=cache[1])
    out = [context.decode(TOKENS[:9], logits="all"), *(context.decode([t], logits="all") for t in TOKENS[9:])]
    splits = [split.device for _, schedule in context._schedules.values() for split in schedule.splits]
    context.close()
    model.close()
    return np.concatenate(out), splits


@pytest.mark.parametrize("cc", [(7, 5), (9, 0)], ids=lambda cc: f"sm_{cc[0]}{cc[1]}")
@pytest.mark.parametrize(
    ("quant", "flash_attn"), [(Q.F16, True), (Q.Q4_0, True), (Q.Q8_0, False)], ids=["F16", "Q4_0", "Q8_0-unfused"]
)
def test_a_layer(tmp_path, quant, flash_attn, cc):
    path = write_llama(tmp_path / "layer.gguf", quant=quant, **SHAPE)
    device = EmulatedDevice(EmulatedGPU(cc=cc))
    actual, _ = logits(path, flash_attn, [device])
    assert device.gpu.launches > 40 and device.gpu.replays, "the layer did not run there"
    with device.lock:
        device.free_retired()
    assert not device.gpu.allocations
    expected, _ = logits(path, flash_attn)
    error = ((actual - expected) ** 2).sum() / (expected**2).sum()
    assert error < (1e-5 if quant == Q.F16 else 5e-4), error  # activations as bytes cost 3e-5 a product
    assert (actual.argmax(1) == expected.argmax(1)).mean() > 0.7


def test_a_cache_of_blocks_stays_on_the_gpu(tmp_path):
    """Rows become blocks where they are stored, and F16 on their way to the tensor cores: no split for the CPU between."""
    path = write_llama(tmp_path / "layer.gguf", quant=Q.F16, **SHAPE)
    _, plain = logits(path, True, [EmulatedDevice()])
    gpu = Noting()
    cache = GGMLType.Q8_0, GGMLType.Q4_0
    actual, splits = logits(path, True, [EmulatedDevice(gpu)], cache)
    assert splits == plain
    assert {Spec("rows", "set_rows", (1,)), Spec("attention_tile", "attend", (64, 1, 1))} <= gpu.asked
    expected, _ = logits(path, True, cache=cache)
    error = ((actual - expected) ** 2).sum() / (expected**2).sum()
    assert error < 1e-3, error  # a sum in another order may round a value of the cache to the next level


class Noting(EmulatedGPU):
    def load(self, spec: Spec) -> Spec:
        self.asked.add(spec)
        return super().load(spec)

    def __init__(self) -> None:
        super().__init__()
        self.asked: set[Spec] = set()
