"""What RPC tests share: a small device in host memory, and a client that speaks raw records without a socket."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from peer import PeerServer
from programs import Newest
from pyggml_rpc.connection import ClientConnection, Reply, ServerConnection
from pyggml_rpc.server import Server
from pyggml_rpc.session import Session
from pyggml_rpc.transport import Listener
from pyggml_rpc.wire import NEWEST, PROTOCOLS, TENSOR, V8, Command, Protocol, Record

from pyggml.backend.base import Backend, Buffer, Bytes, Device, Kind, Plan, Usage
from pyggml.backend.cpu import CPUDevice
from pyggml.backend.host import HostBuffer
from pyggml.dtypes import SIZES, GGMLType
from pyggml.errors import ComputeError
from pyggml.graph import Graph
from pyggml.ops import Op
from pyggml.tensor import Tensor, contiguous_strides


@dataclass
class ToyPlan(Plan):
    graph: Graph


class ToyBackend(Backend):
    """ADD, MUL, SCALE, CONT, GET_ROWS, SET_ROWS and MUL_MAT of F32 in NumPy; `gate` holds a computation until it is set."""

    def __init__(self, device: ToyDevice) -> None:
        self.device = device
        self.aborted = False

    def plan(
        self, graph: Graph, *, cancelled: Callable[[], bool] | None = None, max_work: int | None = None
    ) -> ToyPlan:
        return ToyPlan(graph)

    def compute(self, plan: Plan) -> None:
        assert isinstance(plan, ToyPlan) and isinstance(self.device, ToyDevice)
        device = self.device
        self.aborted = False
        with device.guard:
            device.inside += 1
            device.most_inside = max(device.most_inside, device.inside)
        try:
            device.entered.set()
            while not device.gate.wait(0.01):
                if self.aborted:
                    raise ComputeError("aborted")
            for node in plan.graph.nodes:
                compute_toy(node)
            device.computed += 1
        finally:
            with device.guard:
                device.inside -= 1

    def abort(self) -> None:
        self.aborted = True


def compute_toy(node: Tensor) -> None:
    a, b = (array(s) for s in (*node.src, node)[:2] if s is not None)
    out = array(node)
    if node.op == Op.ADD:
        out[...] = a + np.broadcast_to(b, a.shape)
    elif node.op == Op.MUL:
        out[...] = a * np.broadcast_to(b, a.shape)
    elif node.op == Op.SCALE:
        out[...] = a * node.param_f32(0) + node.param_f32(1)
    elif node.op == Op.CONT:
        out[...] = a.reshape(out.shape)
    elif node.op == Op.MUL_MAT:
        out[...] = np.einsum("abmk,abnk->abnm", a, b)
    elif node.op in (Op.GET_ROWS, Op.SET_ROWS):
        rows, table = (b[0, 0, 0], a) if node.op == Op.GET_ROWS else (b[0, 0, 0], out)
        if rows.size and not (rows.min() >= 0 and rows.max() < table.shape[2]):
            raise ComputeError(f"{node.name!r}: row {rows.min()} or {rows.max()} of {table.shape[2]}")
        if node.op == Op.GET_ROWS:
            out[0, 0] = a[0, 0, rows]
        else:
            out[0, 0, rows] = a[0, 0]
    else:
        raise AssertionError(node.op)


class ToyDevice(Device):
    name = "TOY"
    description = "NumPy, for tests"
    kind = Kind.CPU
    OPS = frozenset({Op.ADD, Op.MUL, Op.SCALE, Op.CONT, Op.MUL_MAT, Op.GET_ROWS, Op.SET_ROWS})

    def __init__(self, total: int = 1 << 28, host: bool = True) -> None:
        self.total = total
        self.host = host
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.guard = threading.Lock()
        self.inside = self.most_inside = self.computed = 0
        self.live: list[Buffer] = []

    def memory(self) -> tuple[int, int]:
        return self.total, self.total

    def why_not(self, node: Tensor) -> str | None:
        if node.op not in self.OPS:
            return "this device has no such op"
        data = node.src if node.op not in (Op.GET_ROWS, Op.SET_ROWS) else node.src[:1]
        return None if all(s is None or s.type == GGMLType.F32 for s in data) else "F32 only"

    def alloc_buffer(self, size: int, usage: Usage = Usage.ANY) -> Buffer:
        buffer = HostBuffer.alloc(self, size, usage) if self.host else FarBuffer(self, size, usage)
        self.live.append(buffer)
        return buffer

    def open(self, n_threads: int | None = None) -> Backend:
        return ToyBackend(self)


class FarBuffer(Buffer):
    """Stands for a GPU's memory, which cannot be received into: only set, get, copy, memset and clear reach it."""

    def __init__(self, device: Device, size: int, usage: Usage) -> None:
        self.inner = HostBuffer.alloc(device, size, usage)
        self.device, self.size, self.usage, self.base = device, size, usage, self.inner.base

    def set(self, tensor: Tensor, data: Bytes, offset: int = 0) -> None:
        self.inner.set(tensor, data, offset)

    def get(self, tensor: Tensor, offset: int = 0, size: int | None = None) -> bytes:
        return self.inner.get(tensor, offset, size)

    def memset(self, tensor: Tensor, value: int, offset: int = 0, size: int | None = None) -> None:
        self.inner.memset(tensor, value, offset, size)

    def clear(self, value: int) -> None:
        self.inner.clear(value)

    def copy(self, src: Tensor, dst: Tensor) -> bool:
        return False

    def free(self) -> None:
        self.inner.free()


def array(tensor: Tensor) -> np.ndarray:
    home = tensor.buffer.inner if isinstance(tensor.buffer, FarBuffer) else tensor.buffer
    assert isinstance(home, HostBuffer)
    kind = {GGMLType.F32: "<f4", GGMLType.I32: "<i4", GGMLType.I64: "<i8"}[tensor.type]
    return np.ndarray(tensor.ne[::-1], kind, home.memory, tensor.data - home.base, tensor.nb[::-1])


def tensor_fields(ne: tuple[int, ...] = (4,), dtype: int = GGMLType.F32, **fields: Any) -> dict[str, Any]:
    full = (*ne, 1, 1, 1)[:4]
    if "nb" not in fields and dtype in SIZES and full[0] % SIZES[GGMLType(dtype)].block_size == 0:
        fields["nb"] = [b & 0xFFFFFFFF for b in contiguous_strides(GGMLType(dtype), full)]
    return {"id": 1, "type": dtype, "ne": full, **fields}


def record(*args: Any, **fields: Any) -> Record:
    r = np.zeros(1, TENSOR)
    for name, value in tensor_fields(*args, **fields).items():
        r[name] = value
    return r


def graph_body(
    nodes: list[int], tensors: list[Record], device: int = 0, protocol: Protocol = NEWEST, uid: int = 1
) -> bytes:
    head = protocol.pack(Command.GRAPH_COMPUTE, device=device, uid=uid, n_nodes=len(nodes))
    ids = np.array(nodes, "<u8").tobytes()
    return head + ids + len(tensors).to_bytes(4, "little") + b"".join(t.tobytes() for t in tensors)


class Glued:
    """A raw client joined to a session of `server` in memory. An attribute call is a request: `g.alloc(100)`."""

    def __init__(self, server: Server, hello: bool = True) -> None:
        self.session = Session(server)
        self.protocol = server.protocol
        self.server_end = ServerConnection(self.protocol, receiving=self.session.receiving)
        self.client_end = ClientConnection()
        if hello:
            self.ask(Command.HELLO, bytes(24))

    def send(self, data: bytes) -> None:
        """Raw bytes to the server; replies are fed to the client's end."""
        while data:
            space = self.server_end.space()
            count = min(len(space), len(data))
            space[:count] = data[:count]
            self.server_end.received(count)
            data = data[count:]
            for frame in self.session.run(self.server_end):
                self.hear(b"".join(bytes(p) for p in frame))

    def hear(self, data: bytes) -> None:
        self.replies: list[Reply] = []
        while data:
            space = self.client_end.space()
            count = min(len(space), len(data))
            space[:count] = data[:count]
            self.client_end.received(count)
            data = data[count:]
            event = self.client_end.next_event()
            if isinstance(event, Reply):
                self.replies.append(event)

    def ask(self, command: Command, body: bytes = b"", data: bytes | None = None, into: bytearray | None = None) -> Any:
        self.replies = []
        pieces = self.client_end.request(command, body, data, None if into is None else memoryview(into))
        self.send(b"".join(bytes(p) for p in pieces))
        if self.protocol[command].reply is None:
            return None
        assert len(self.replies) == 1
        values = self.replies[0].record
        names = values.dtype.names or ()
        return {name: values[name][0] for name in names}

    def request(self, command: Command, **fields: Any) -> Any:
        return self.ask(command, self.protocol.pack(command, **fields))

    def alloc(self, size: int, device: int = 0) -> tuple[int, int]:
        """(handle, base)"""
        handle = int(self.request(Command.ALLOC_BUFFER, device=device, size=size)["remote_ptr"])
        assert handle
        return handle, int(self.request(Command.BUFFER_GET_BASE, remote_ptr=handle)["base_ptr"])

    def offer(self, device: int = 0) -> int:
        """Bytes that this client may still take."""
        return int(self.request(Command.GET_DEVICE_MEMORY, device=device)["free"])

    def set(self, tensor: Record, data: bytes, offset: int = 0, cache: int = 0) -> None:
        body = self.protocol.pack(Command.SET_TENSOR, tensor=tensor, offset=offset, cache_flag=cache)
        self.ask(Command.SET_TENSOR, body, data)

    def get(self, tensor: Record, size: int, offset: int = 0) -> bytes:
        into = bytearray(size)
        body = self.protocol.pack(Command.GET_TENSOR, tensor=tensor, offset=offset, size=size)
        self.ask(Command.GET_TENSOR, body, into=into)
        return bytes(into)

    def compute(self, nodes: list[int], tensors: list[Record], device: int = 0, uid: int = 1) -> None:
        self.compute_body(graph_body(nodes, tensors, device, self.protocol, uid))

    def compute_body(self, body: bytes) -> None:
        """And wait for it, as the next command that reads a buffer would."""
        self.ask(Command.GRAPH_COMPUTE, body)
        self.session.settle(wait=True)

    def recompute(self, device: int = 0, uid: int = 1) -> None:
        self.request(Command.GRAPH_RECOMPUTE, device=device, uid=uid)
        self.session.settle(wait=True)


@dataclass
class Sum:
    """c = a + b of four F32 values each, laid out in one buffer of 64 bytes."""

    handle: int
    base: int
    device: int = 0
    records: list[Record] = field(default_factory=list)

    def run(self, client: Glued) -> list[float]:
        client.set(self.records[0], np.array([1, 2, 3, 4], "<f4").tobytes())
        client.set(self.records[1], np.array([10, 20, 30, 40], "<f4").tobytes())
        client.compute([3], self.records, self.device)
        return np.frombuffer(client.get(self.records[2], 16), "<f4").tolist()


def sum_of(client: Glued, device: int = 0) -> Sum:
    handle, base = client.alloc(64, device)
    home = {"buffer": handle}
    a = record(**home, id=1, data=base)
    b = record(**home, id=2, data=base + 16)
    c = record(**home, id=3, data=base + 32, op=Op.ADD, flags=16, src=[1, 2, *[0] * 8])
    return Sum(handle, base, device, [a, b, c])


class Kit:
    """The helpers above, for tests that cannot import this file."""

    ToyDevice = ToyDevice
    Glued = Glued
    record = staticmethod(record)
    graph_body = staticmethod(graph_body)
    sum_of = staticmethod(sum_of)
    SUM = [11.0, 22.0, 33.0, 44.0]  # noqa: RUF012


@pytest.fixture(scope="session")
def kit() -> type[Kit]:
    return Kit


@pytest.fixture(scope="module")
def our_server() -> Iterator[Listener]:
    """With the CPU, for whole models."""
    with Listener(Server([CPUDevice()], n_threads=1, protocol=V8), port=0) as listener:
        yield listener


@pytest.fixture(scope="module")
def stock_server(newest: Newest) -> Iterator[PeerServer]:
    with newest.rpc_server() as server:
        yield server


@pytest.fixture
def toy() -> ToyDevice:
    return ToyDevice()


@pytest.fixture(params=PROTOCOLS, ids=str)
def server(toy: ToyDevice, request: pytest.FixtureRequest) -> Iterator[Server]:
    server = Server([toy], protocol=request.param)
    yield server
    server.close()


@pytest.fixture
def client(server: Server) -> Glued:
    return Glued(server)


@pytest.fixture
def listener(server: Server) -> Iterator[Listener]:
    with Listener(server, port=0) as listener:
        yield listener
