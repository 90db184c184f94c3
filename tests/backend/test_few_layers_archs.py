"""Architectures with windows, experts, parallel blocks and states beside attention: their layers, six times as many as the
reference's tiny files have, come out of a few as if all were built, on the CPU, on a GPU that takes notes and for a server."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from edit_gguf import edit
from few_compare import assert_same
from peer_archs import ArchPeer
from pyggml_rpc.backend import devices_from_spec
from pyggml_rpc.server import Server
from pyggml_rpc.transport import Listener

from pyggml.backend.base import Device
from pyggml.backend.cpu import CPUDevice
from pyggml.backend.few_layers import FewLayers
from pyggml.gguf import GGUFFile
from pyggml.model.model import Model
from pyggml.runtime.context import Context

NAMES = (
    "bloom-dense", "cohere2-dense", "dbrx-moe", "falcon-h1-dense", "gemma2-dense", "gemma3-dense", "gpt-oss-moe", "granite_swa-dense",
    "minicpm3-dense", "phi2-dense", "qwen2moe-moe", "smollm3-dense", "talkie-dense",
)  # fmt: skip
SHAPES = ((1, 256, 1), (7, 256, 1), (7, 256, 7))


def grown(source: Path, target: Path, times: int) -> Path:
    """The same model with its layers repeated."""
    with GGUFFile.open(source) as file:
        prefix = f"{file.metadata['general.architecture']}."
        count = int(file.metadata[f"{prefix}block_count"])
        lists = {
            key: np.tile(np.asarray(value), times)
            for key, value in file.metadata.items()
            if key.startswith(prefix) and not isinstance(value, str) and np.ndim(value) == 1 and len(value) == count
        }
        more = {}
        for name, tensor in file.tensors.items():
            layer = re.match(r"blk\.(\d+)\.(.*)", name)
            for k in range(1, times) if layer else ():
                shape = list(tensor.ne[::-1])
                while len(shape) > 1 and shape[0] == 1:
                    del shape[0]
                more[f"blk.{int(layer[1]) + k * count}.{layer[2]}"] = tensor.data.view("<f4").reshape(shape)  # type: ignore[index]
        metadata = {f"{prefix}block_count": count * times, **lists}
        return edit(source, target, replace={name: a.copy() for name, a in more.items()}, metadata=metadata)


@pytest.fixture(scope="module", params=["CPU", "GPU", "server"])
def devices(request: pytest.FixtureRequest) -> Iterator[list[Device]]:
    if request.param == "GPU":
        pytest.importorskip("numba_cuda", reason="numba-cuda is not installed: pip install '.[cuda]'")
        from cuda_recording import RecordingGPU

        from pyggml.backend.cuda.device import CudaDevice

        yield [CudaDevice(RecordingGPU())]
        return
    with Listener(Server([CPUDevice()], n_threads=1), port=0) as listener:
        yield devices_from_spec(listener.endpoint) if request.param == "server" else []


@pytest.mark.parametrize("name", NAMES)
def test_few_layers_of_architectures(arch_peer: ArchPeer, devices: list[Device], name: str, tmp_path: Path) -> None:
    model = Model.load(grown(arch_peer.files()[name], tmp_path / "m.gguf", 6), devices=devices, n_gpu_layers=99)
    context = Context(model, n_ctx=512, n_ubatch=64, n_threads=1)
    schedules, built = context._schedules, []
    for shape in (context.shape(*shape) for shape in SHAPES):
        schedules._few.clear()
        whole = schedules.make(shape, context.adapters)[1]
        few = schedules.make(shape, context.adapters)[1]
        assert_same(few, whole)
        (one,) = schedules._few.values()
        assert isinstance(one, FewLayers)
        runs = one.pattern(shape.form)
        built.append(model.config.n_layer if runs is None else len(runs.layers))
    assert max(built[0], built[2]) < model.config.n_layer, built
    context.close()
    model.close()
