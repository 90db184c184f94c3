"""A GPU that is lost while a server offers it: whoever uses it is told, what it held is given back, no further client gets
at it, and a server without any other device ends. On a driver that fails on demand."""

import logging
import threading

import numpy as np
import pytest
from loopback import Adder
from pyggml_cli import rpc_server
from pyggml_cli.flags import parse
from pyggml_rpc import transport
from pyggml_rpc.backend import devices_from_spec
from pyggml_rpc.server import Server
from pyggml_rpc.transport import Listener
from waiting import until

import pyggml.backend.cuda
from pyggml.backend.cuda.device import CudaDevice
from pyggml.backend.cuda.driver import STICKY, CudaGPU
from pyggml.backend.reference import ReferenceDevice
from pyggml.errors import DeviceError, PyggmlError
from pyggml.tensor import Usage

REASON = "Fake 0 cannot be used any more after CUDA_ERROR_ILLEGAL_ADDRESS: start this program again"


@pytest.fixture
def cards(fake):
    return [CudaDevice(CudaGPU(i)) for i in range(2)]


def lose(fake, adder: Adder, code: str = "ILLEGAL_ADDRESS") -> None:
    """The GPU of this client's graph fails under it."""
    fake.fail("cuStreamSynchronize", code, times=1)
    with pytest.raises(PyggmlError):
        adder.run(1.0, 2.0)
    assert "cuStreamSynchronize" not in fake.fails


@pytest.mark.parametrize("code", sorted(name.removeprefix("CUDA_ERROR_") for name in STICKY))
def test_after_each_of_these_a_gpu_is_lost(fake, cards, code):
    buffer = cards[0].alloc_buffer(64)
    fake.fail("cuStreamSynchronize", code, times=1)
    with pytest.raises(DeviceError, match=code):
        cards[0].gpu.synchronize()
    assert cards[0].lost is not None and code in cards[0].lost and cards[1].lost is None
    buffer.free()
    with pytest.raises(DeviceError, match="cannot be used any more"):
        cards[0].alloc_buffer(64)


@pytest.mark.parametrize("code", ["OUT_OF_MEMORY", "INVALID_VALUE", "LAUNCH_OUT_OF_RESOURCES", "INVALID_IMAGE"])
def test_other_failures_lose_nothing(fake, cards, code):
    fake.fail("cuMemsetD8Async", code, times=1)
    with pytest.raises(DeviceError, match=code):
        cards[0].alloc_buffer(64)
    assert cards[0].lost is None
    cards[0].alloc_buffer(64).free()


def test_what_is_not_zeroed_is_given_back(fake, cards):
    fake.fail("cuMemsetD8Async", "UNKNOWN", times=1)
    with pytest.raises(DeviceError, match="UNKNOWN"):
        cards[0].alloc_buffer(64)
    assert not fake.memory


def test_a_server_gives_back_what_a_lost_gpu_held_and_offers_it_no_more(fake, cards, caplog):
    caplog.set_level(logging.INFO, "pyggml.rpc")
    server = Server([*cards])
    with Listener(server, port=0) as listener:
        first, second = devices_from_spec(listener.endpoint)
        beside = Adder(second)
        lose(fake, Adder(first))
        until(lambda: server.devices[0].used == 0)
        assert server.devices[0].memory() == (0, 1 << 30) and server.lost is None
        again, other = devices_from_spec(listener.endpoint)
        assert again.memory() == (0, 1 << 30) and other.memory()[1] > 0
        with pytest.raises(DeviceError, match="no room for a buffer of 64 bytes"):
            again.alloc_buffer(64, Usage.COMPUTE)
        assert beside.buffer.size and other.alloc_buffer(64, Usage.COMPUTE).size == 64
    assert caplog.text.count(f"CUDA0 is not offered any more: {REASON}") == 1
    assert server.devices[0].used == server.devices[1].used == server.host.held == 0
    assert not [block for block in fake.memory.values() if block.context == "context 1"]


def test_accounts_are_given_back_where_memory_cannot_be(fake, cards, caplog):
    """Whatever the driver says when it is given memory back."""
    server = Server([cards[0]])
    with Listener(server, port=0) as listener:
        (device,) = devices_from_spec(listener.endpoint)
        for size in (100, 200, 300):
            device.alloc_buffer(size, Usage.COMPUTE)
        assert server.devices[0].used == 600
        fake.fail("cuMemFree", "UNKNOWN")
        device.client.close()
        until(lambda: listener.n_clients == 0)
        assert server.devices[0].used == server.host.held == server._buffers == 0
    assert "could not free all that the client had" in caplog.text
    assert len(fake.named("cuMemFree")) == 3


def test_a_server_whose_devices_are_all_lost_ends_with_the_reason(fake, cards, monkeypatch):
    monkeypatch.setattr(pyggml.backend.cuda, "cuda_devices", lambda: cards[:1])
    monkeypatch.setattr(transport, "TICK", 0.01)
    asked, end = threading.Event(), threading.Event()

    def wait() -> None:
        asked.set()
        assert end.wait(60)

    raised: list[BaseException] = []

    def serve() -> None:
        try:
            rpc_server._serve(parse(rpc_server.ROWS, ["-p", "0"]), wait, end.set)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    assert asked.wait(60) and not end.is_set()
    fake.fail("cuMemGetInfo", "ILLEGAL_ADDRESS", times=1)
    with pytest.raises(DeviceError):
        cards[0].memory()
    thread.join(60)
    assert [(type(error), str(error)) for error in raised] == [(DeviceError, REASON)]


def test_a_server_with_another_device_goes_on(fake, cards, monkeypatch):
    monkeypatch.setattr(transport, "TICK", 0.01)
    ended = threading.Event()
    with Listener(Server([cards[0], ReferenceDevice()]), port=0, when_lost=ended.set) as listener:
        first, other = devices_from_spec(listener.endpoint)
        lose(fake, Adder(first))
        _, other = devices_from_spec(listener.endpoint)
        assert not ended.wait(0.1)
        assert Adder(other).run(1.0, 2.0) == 3.0
        assert np.isfinite(other.memory()).all()
