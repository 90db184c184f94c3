"""Windows and recurrent states on a server: what is computed, shifted, copied, saved and restored there is what is computed here."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from loopback import device_of
from pyggml_rpc.server import Server
from pyggml_rpc.transport import Listener
from tiny_archs import KINDS, tiny_archs

from pyggml.backend.cpu import CPUDevice
from pyggml.model.model import Model
from pyggml.runtime import state
from pyggml.runtime.batch import Batch
from pyggml.runtime.context import Context

TOKENS = [int(t) for t in np.random.default_rng(6).integers(97, 123, 60)]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    with tiny_archs(tmp_path_factory.mktemp("archs")) as made:
        yield made


@pytest.fixture
def endpoint() -> Iterator[Listener]:
    server = Server([CPUDevice()])
    with Listener(server, port=0) as listener:
        yield listener
    server.close()


def rows(model: Model) -> list[np.ndarray]:
    """Logits after each of many things that can be done with sequences."""
    found = []
    with contextlib.closing(Context(model, n_ctx=2 * 96, n_ubatch=8, n_seq_max=2)) as context:
        found.append(context.decode(TOKENS[:30]))
        context.memory.copy(0, 1)
        found.append(context.decode(Batch.join([Batch.of(TOKENS[30:33], 30, 0), Batch.of(TOKENS[40:41], 30, 1)])))
        checkpoint = context.memory.checkpoint(1)
        data = b"".join(state.parts(context, [*TOKENS[:30], TOKENS[40]], 1))
        found.append(context.decode(Batch.of(TOKENS[41:50], 31, 1)))
        assert context.memory.restore(1, checkpoint, 31)
        found.append(context.decode(Batch.of(TOKENS[41:50], 31, 1)))
        context.memory.remove(1)  # another text begins there
        found.append(context.decode(Batch.of(TOKENS[5:9], 0, 1)))
        state.parse(data, "bytes").restore(context, 31, 1)
        found.append(context.decode(Batch.of(TOKENS[41:50], 31, 1)))
        if not context.memory.why_no_shift:
            context.shift(2, 12)
            found.append(context.decode(TOKENS[33:36]))
    return found


@pytest.mark.parametrize("name", KINDS)
def test_what_a_server_remembers(name: str, paths: dict[str, Path], endpoint: Listener) -> None:
    with contextlib.closing(Model.load(paths[name])) as model:
        here = rows(model)
    device = device_of(endpoint)
    with contextlib.closing(Model.load(paths[name], devices=[device])) as model:
        assert model.layer_devices[0] is device
        there = rows(model)
    for i in (3, 5):  # from a checkpoint, and from a saved state
        np.testing.assert_allclose(there[2], there[i], rtol=1e-4, atol=1e-4)
    for a, b in zip(here, there, strict=True):
        np.testing.assert_array_equal(a, b)
