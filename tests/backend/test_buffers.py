"""What every device promises of its buffers: all bytes are zero in the beginning, whatever lay there before."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from mutants import Mutant, assert_caught
from pyggml_rpc.backend import devices_from_spec
from pyggml_rpc.server import Server
from pyggml_rpc.transport import Listener

from pyggml.backend.base import Device, Usage
from pyggml.backend.cpu import CPUDevice
from pyggml.backend.cuda import compiled, driver
from pyggml.backend.cuda.device import CudaBuffer, CudaDevice
from pyggml.backend.cuda.driver import CudaGPU
from pyggml.backend.reference import ReferenceDevice
from pyggml.dtypes import GGMLType
from pyggml.tensor import Tensor


def fake_card(monkeypatch: pytest.MonkeyPatch) -> CudaDevice:
    """On a driver that gives memory out as its last user left it."""
    from cuda_fake_driver import FakeDriver

    fake = FakeDriver()
    monkeypatch.setattr(driver, "_driver", lambda: fake)
    monkeypatch.setattr(compiled, "cubin", lambda spec, cc: b"machine code")
    return CudaDevice(CudaGPU(0))


def emulated() -> Device:
    pytest.importorskip("numba_cuda", reason="numba-cuda is not installed: pip install '.[cuda]'")
    from cuda_device import EmulatedDevice

    return EmulatedDevice()


@pytest.fixture(
    params=[
        "CPU",
        "reference",
        "emulated GPU",
        "GPU",
        "CPU behind RPC",
        "GPU behind RPC",
        pytest.param("card", marks=pytest.mark.gpu),
    ]
)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    match request.param:
        case "CPU":
            yield CPUDevice()
        case "reference":
            yield ReferenceDevice()
        case "emulated GPU":
            yield emulated()
        case "GPU":
            yield fake_card(monkeypatch)
        case "card":
            yield request.getfixturevalue("card")
        case remote:
            far: Device = CPUDevice() if remote.startswith("CPU") else fake_card(monkeypatch)
            with Listener(Server([far]), port=0) as listener:
                (found,) = devices_from_spec(listener.endpoint)
                yield found


def zeroed(device: Device, size: int, usage: Usage) -> None:
    """Twice: the second buffer may lie where the first one was."""
    for _ in range(2):
        buffer = device.alloc_buffer(size, usage)
        t = Tensor(GGMLType.I8, (size,))
        buffer.place(t, 0)
        assert buffer.get(t) == bytes(size)
        buffer.set(t, np.full(size, 0xA5, np.uint8))
        assert buffer.get(t) == b"\xa5" * size
        buffer.free()


@pytest.mark.parametrize("usage", list(Usage))
@pytest.mark.parametrize("size", [1, 4097, 3 << 20])
def test_buffers_begin_zeroed(device: Device, size: int, usage: Usage) -> None:
    zeroed(device, size, usage)


@pytest.mark.parametrize(
    "old, new", [("if size:", "if size > 4096:"), ("if size:", "if usage is not usage.COMPUTE:"), (", 0, size)", ", 0, size - 1)")]
)  # fmt: skip
def test_a_device_that_does_not_clear_them_is_seen(monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    def test() -> None:
        for usage in Usage:
            zeroed(fake_card(monkeypatch), 65, usage)

    wrong: Mutant = (CudaBuffer, "__init__", old, new)
    checked: Callable[[], None] = test
    assert_caught(monkeypatch, wrong, checked)
