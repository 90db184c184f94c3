"""Our client and servers that lie: whatever an answer says, it is used rightly or ends in one clear line, in time."""

import contextlib
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyggml_rpc.backend import MAX_ALIGNMENT, MAX_DEVICES, RpcDevice, devices_from_spec
from pyggml_rpc.client import Patience
from pyggml_rpc.errors import RpcError
from pyggml_rpc.wire import Command

from pyggml import Llama
from pyggml.api.arguments import ParameterError
from pyggml.backend.base import Usage
from pyggml.dtypes import GGMLType
from pyggml.errors import DeviceError
from pyggml.graph import build_forward
from pyggml.ops import add
from pyggml.tensor import Tensor

C = Command
U64 = (1 << 64) - 1
Answer = Callable[[bytes], bytes]


def words(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}Q", *values)


TRUE: dict[int, Answer] = {
    C.HELLO: lambda body: bytes([7]) + bytes(27),
    C.DEVICE_COUNT: lambda body: (1).to_bytes(4, "little"),
    C.GET_ALIGNMENT: lambda body: words(64),
    C.GET_MAX_SIZE: lambda body: words(U64),
    C.GET_DEVICE_MEMORY: lambda body: words(1 << 30, 1 << 30),
    C.GET_ALLOC_SIZE: lambda body: words(0),
    C.ALLOC_BUFFER: lambda body: words(5, struct.unpack_from("<Q", body, 4)[0]),
    C.BUFFER_GET_BASE: lambda body: words(1 << 32),
    C.SET_TENSOR_HASH: lambda body: b"\0",
    C.GET_TENSOR: lambda body: bytes(struct.unpack_from("<Q", body, 304)[0]),
    C.COPY_TENSOR: lambda body: b"\1",
}
"""What an honest server of no devices would say."""


class Liar:
    """A server whose answers are TRUE's, but for some; `drip`: seconds between two bytes of those to GET_TENSOR."""

    def __init__(self) -> None:
        self.lies: dict[int, Answer] = {}
        self.drip = 0.0
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"127.0.0.1:{self.listening.getsockname()[1]}"
        self.socks: list[socket.socket] = []
        self.threads = [threading.Thread(target=self._accept, daemon=True)]
        self.threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self.listening.accept()
            except OSError:
                return
            self.socks.append(sock)
            self.threads.append(threading.Thread(target=self._serve, args=(sock,), daemon=True))
            self.threads[-1].start()

    def _serve(self, sock: socket.socket) -> None:
        with sock, sock.makefile("rb") as stream:
            try:
                while header := stream.read(9):
                    command, body = header[0], stream.read(int.from_bytes(header[1:], "little"))
                    if command not in TRUE:
                        continue
                    reply = (self.lies.get(command) or TRUE[command])(body)
                    frame = words(len(reply)) + reply
                    if self.drip and command == C.GET_TENSOR:
                        for byte in frame:
                            sock.sendall(bytes([byte]))
                            time.sleep(self.drip)
                    else:
                        sock.sendall(frame)
            except OSError:
                pass

    def close(self) -> None:
        self.listening.shutdown(socket.SHUT_RDWR)
        self.listening.close()
        for sock in self.socks:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join(5)


@pytest.fixture
def liar() -> Iterator[Liar]:
    server = Liar()
    yield server
    server.close()


def use(endpoint: str, **options: Any) -> bytes:
    """All that a client asks of a server, once."""
    devices = devices_from_spec(endpoint, **options)
    device = devices[0]
    assert isinstance(device, RpcDevice)
    device.memory()
    a, b = Tensor(GGMLType.F32, (64, 3), name="a"), Tensor(GGMLType.Q4_0, (64, 2), name="b")
    out = add(a, a, name="out")
    size = 4096 + device.alloc_size(b)
    buffer, other = device.alloc_buffer(size, Usage.WEIGHTS), device.alloc_buffer(1024)
    backend = device.open()
    try:
        for i, tensor in enumerate((a, out, b)):
            buffer.place(tensor, 1024 * i)
        there = Tensor(GGMLType.F32, (64, 3))
        other.place(there, 0)
        buffer.set(a, bytes(768))
        buffer.copy(there, a)
        backend.compute(backend.plan(build_forward([out])))
        return buffer.get(out)
    finally:
        backend.close()
        buffer.free()
        other.free()


def test_an_honest_server_is_believed(liar: Liar) -> None:
    assert use(liar.endpoint) == bytes(768)


LIES: dict[str, tuple[int, bytes, str]] = {
    "no room for anything": (C.ALLOC_BUFFER, words(0, 0), "no room for a buffer of"),
    "a buffer of size 0": (C.ALLOC_BUFFER, words(5, 0), r"ALLOC_BUFFER: the server gave 0 bytes, \d+ were asked for"),
    "a buffer too small": (
        C.ALLOC_BUFFER,
        words(5, 4000),
        r"ALLOC_BUFFER: the server gave 4000 bytes, \d+ were asked for",
    ),
    "base 0": (C.BUFFER_GET_BASE, words(0), "BUFFER_GET_BASE: 0x0 is not a base address"),
    "base 1": (C.BUFFER_GET_BASE, words(1), "BUFFER_GET_BASE: 0x1 is not a base address"),
    "base 2^64-64": (C.BUFFER_GET_BASE, words(U64 - 63), "BUFFER_GET_BASE: 0xffffffffffffffc0 is not a base address"),
    "base 2^63-64": (C.BUFFER_GET_BASE, words((1 << 63) - 64), "is not a base address of"),
    "no devices": (C.DEVICE_COUNT, bytes(4), "DEVICE_COUNT: the server offers no device"),
    "65 devices": (C.DEVICE_COUNT, bytes([65, 0, 0, 0]), f"65 devices, at most {MAX_DEVICES} are accepted"),
    "2^32-1 devices": (C.DEVICE_COUNT, b"\xff" * 4, "DEVICE_COUNT: 4294967295 devices, at most"),
    "alignment 0": (C.GET_ALIGNMENT, words(0), "GET_ALIGNMENT: 0 is not a power of two up to 1048576"),
    "alignment 3": (C.GET_ALIGNMENT, words(3), "3 is not a power of two"),
    "alignment 2^40": (C.GET_ALIGNMENT, words(1 << 40), f"{1 << 40} is not a power of two up to {MAX_ALIGNMENT}"),
    "alignment 2^63": (C.GET_ALIGNMENT, words(1 << 63), "is not a power of two up to"),
    "alignment of 4 bytes": (C.GET_ALIGNMENT, b"1234", "the reply to GET_ALIGNMENT has 4 bytes, not 8"),
    "short tensor": (C.GET_TENSOR, bytes(764), "the reply to GET_TENSOR has 764 bytes, not 768"),
    "long tensor": (C.GET_TENSOR, bytes(772), "the reply to GET_TENSOR has 772 bytes, not 768"),
    "version 9": (C.HELLO, bytes([9]) + bytes(27), "the server speaks protocol 9.0.0"),
    "version 9.1.2 and a longer HELLO": (
        C.HELLO,
        bytes([9, 1, 2]) + bytes(29),
        r"the server speaks protocol 9\.1\.2, .*: this client needs an upgrade; its answer to HELLO has 32 bytes",
    ),
    "version 255.255.255": (C.HELLO, b"\xff" * 28, "the server speaks protocol 255.255.255"),
    "HELLO of nothing": (C.HELLO, b"", "the reply to HELLO has 0 bytes, not 28"),
    "alloc size 2^64-1": (C.GET_ALLOC_SIZE, words(U64), f"GET_ALLOC_SIZE: {U64} bytes for a tensor of"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_ends_in_one_line(liar: Liar, lie: str) -> None:
    command, reply, line = LIES[lie]
    liar.lies[command] = lambda body: reply
    with pytest.raises((RpcError, DeviceError), match=line) as caught:
        use(liar.endpoint)
    assert "\n" not in str(caught.value) and liar.endpoint in str(caught.value)


@pytest.mark.parametrize(
    "command, reply",
    [
        (C.GET_DEVICE_MEMORY, words(U64, U64)),
        (C.GET_DEVICE_MEMORY, words(1 << 40, 1)),
        (C.GET_DEVICE_MEMORY, words(0, 0)),
        (C.GET_MAX_SIZE, words(0)),
        (C.ALLOC_BUFFER, words(77, U64)),
        (C.GET_ALLOC_SIZE, words(1)),
        (C.GET_TENSOR, b"\xff" * 768),
        (C.SET_TENSOR_HASH, b"\xff"),
        (C.COPY_TENSOR, b"\0"),
        (C.DEVICE_COUNT, bytes([MAX_DEVICES, 0, 0, 0])),
    ],
)
def test_a_lie_that_harms_nothing_is_none(liar: Liar, command: int, reply: bytes) -> None:
    liar.lies[command] = lambda body: reply
    assert len(use(liar.endpoint)) == 768


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(sorted(set(TRUE) - {C.HELLO})),
        st.lists(st.one_of(st.sampled_from([0, 1, 64, 1 << 31, 1 << 63, U64, U64 - 63]), st.integers(0, U64))),
        min_size=1,
        max_size=3,
    )
)
def test_any_lie_at_all(lies: dict[int, list[int]]) -> None:
    """Answers of the right length and any contents: they are used, or end in an error with a name."""
    liar = Liar()
    try:
        for command, values in lies.items():
            size = {C.DEVICE_COUNT: 4, C.SET_TENSOR_HASH: 1, C.COPY_TENSOR: 1, C.GET_TENSOR: 768}.get(command, 8)
            size = 16 if command in (C.ALLOC_BUFFER, C.GET_DEVICE_MEMORY) else size
            liar.lies[command] = lambda body, v=tuple(values), n=size: words(*v).ljust(n, b"\x01")[:n]
        use(liar.endpoint, io_timeout=10.0)
    except DeviceError as error:
        assert "\n" not in str(error)
    except RpcError as error:
        assert "\n" not in str(error)
    finally:
        liar.close()


# ---- time


def test_a_drip_has_an_end(liar: Liar) -> None:
    """Each byte once began the five minutes anew."""
    liar.drip = 0.02
    began = time.monotonic()
    with pytest.raises(RpcError, match=r"GET_TENSOR: no whole answer within 0\.303 s$"):
        use(liar.endpoint, io_timeout=0.3)
    assert time.monotonic() - began < 5


def test_a_server_that_takes_nothing_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        endpoint = f"127.0.0.1:{listening.getsockname()[1]}"

        def greet() -> None:
            sock, _ = listening.accept()
            held.append(sock)
            for command in (
                C.HELLO,
                C.DEVICE_COUNT,
                C.GET_ALIGNMENT,
                C.GET_MAX_SIZE,
                C.ALLOC_BUFFER,
                C.BUFFER_GET_BASE,
            ):
                header = sock.recv(9, socket.MSG_WAITALL)
                body = sock.recv(int.from_bytes(header[1:], "little"), socket.MSG_WAITALL)
                reply = TRUE[command](body)
                sock.sendall(words(len(reply)) + reply)

        held: list[socket.socket] = []
        thread = threading.Thread(target=greet, daemon=True)
        thread.start()
        (device,) = devices_from_spec(endpoint, io_timeout=0.3)
        buffer = device.alloc_buffer(64 << 20)
        tensor = Tensor(GGMLType.I8, (64 << 20,))
        buffer.place(tensor, 0)
        monkeypatch.setattr("pyggml_rpc.client.SLOWEST", 1 << 40)
        with pytest.raises(RpcError, match=r"SET_TENSOR: \d+ bytes were not accepted within 0\.3 s"):
            buffer.set(tensor, bytes(64 << 20))
        thread.join(5)
        held[0].close()


def test_waiting_is_told(liar: Liar, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("pyggml_rpc.client.NOTICES", (0.1, 0.25))
    liar.lies[C.GET_DEVICE_MEMORY] = lambda body: (time.sleep(0.4), words(1, 2))[1]
    use(liar.endpoint)
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"waiting for {liar.endpoint} (GET_DEVICE_MEMORY) since {n} s" for n in (0, 0)]


def test_notices_come_after_ten_seconds_a_minute_and_every_minute(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [0.0]
    monkeypatch.setattr("pyggml_rpc.client.time.monotonic", lambda: now[0])
    patience = Patience("host:1", C.SET_TENSOR, 300.0, 0)
    pauses = []
    while now[0] < 299.9:
        pauses.append(patience())
        now[0] += pauses[-1]
    assert [round(p) for p in pauses] == [10, 50, 60, 60, 60, 60]
    assert [r.getMessage() for r in caplog.records] == [
        f"waiting for host:1 (SET_TENSOR) since {n} s" for n in (10, 60, 120, 180, 240)
    ]
    now[0] = 300.0
    with pytest.raises(TimeoutError):
        patience()


def test_llama_takes_the_time(liar: Liar, tmp_path: Any) -> None:
    model = tmp_path / "m.gguf"
    model.write_bytes(b"GGUF")
    liar.lies[C.DEVICE_COUNT] = lambda body: (time.sleep(1), TRUE[C.DEVICE_COUNT](body))[1]
    with pytest.raises(RpcError, match=r"DEVICE_COUNT: no whole answer within 0\.2 s"):
        Llama(str(model), rpc_servers=liar.endpoint, rpc_timeout=0.2, verbose=False)
    for wrong, why in ((0, "must be above 0 seconds"), (-1, "must be above 0 seconds"), (np.nan, "must be a number")):
        with pytest.raises(ParameterError, match=re.escape(f"rpc_timeout={wrong}: {why}")):
            Llama(str(model), rpc_servers=liar.endpoint, rpc_timeout=wrong)
