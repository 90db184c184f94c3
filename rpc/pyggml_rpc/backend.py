"""A remote device as a backend like any other: Device, Buffer and Backend over a connection.

Owns what is asked of a server and when; it must not know a socket or a byte layout. `data` of a tensor is an address in
the server's own space. Reference: `ggml_backend_rpc_*` in ggml-rpc.cpp.
"""

import contextlib
import itertools
from collections.abc import Callable

import numpy as np

from pyggml.backend.base import Backend, Begun, Buffer, Bytes, Device, Kind, Plan, Usage
from pyggml.backend.host import host_memory
from pyggml.dtypes import SIZES
from pyggml.errors import DeviceError, UnsupportedError
from pyggml.graph import Graph
from pyggml.ops import RULES, VIEW_OPS, Op
from pyggml.tensor import Tensor
from pyggml_rpc.cache import content_hash
from pyggml_rpc.client import CONNECT_TIMEOUT, HELLO_TIMEOUT, IO_TIMEOUT, Client, connect
from pyggml_rpc.errors import RpcError
from pyggml_rpc.records import sign, write_graph, write_tensor, write_tensors
from pyggml_rpc.repeated import write_repeated
from pyggml_rpc.wire import MAX_SRC, NEWEST, TENSOR, Command, Protocol, Record, unpack

HASH_ABOVE = 10 * 1024 * 1024  # bytes of weights that are asked for by hash before they are sent
MAX_DEVICES = 64  # of one server
MAX_ALIGNMENT = 1 << 20
MAX_ADDRESS = (1 << 63) - 1
_numbers = itertools.count(1)
MAX_RECORDS = 1024  # of one buffer's tensors, and requests for them

# ops that some servers give more room than their result needs (ggml.c: ggml_op_alloc_size_may_expand)
MAY_EXPAND = frozenset({Op.MUL_MAT, Op.MUL_MAT_ID, Op.FLASH_ATTN_EXT, Op.CUMSUM, Op.ARGSORT, Op.TOP_K})


def devices_from_spec(
    spec: str,
    *,
    hash_weights: bool = True,
    connect_timeout: float = CONNECT_TIMEOUT,
    hello_timeout: float = HELLO_TIMEOUT,
    io_timeout: float = IO_TIMEOUT,
) -> list[Device]:
    """All devices of the servers in "host:port,host:port", in that order, named RPC0, RPC1 ...

    `hash_weights` False sends large weights without first asking whether the server has them. Times are in seconds.
    Raises RpcError naming the endpoint.
    """
    endpoints = [endpoint.strip() for endpoint in spec.split(",")]
    devices: list[Device] = []
    for i, endpoint in enumerate(endpoints):
        if endpoint in endpoints[:i]:
            raise RpcError(endpoint, "connect", "it is listed twice")
        client = connect(endpoint, connect_timeout, hello_timeout, io_timeout)
        count = int(client.ask(Command.DEVICE_COUNT)["device_count"][0])
        if not count:
            raise RpcError(endpoint, Command.DEVICE_COUNT.name, "the server offers no device")
        if count > MAX_DEVICES:
            raise client.distrust(Command.DEVICE_COUNT, f"{count} devices, at most {MAX_DEVICES} are accepted")
        devices += [RpcDevice(client, number, f"RPC{len(devices) + number}", hash_weights) for number in range(count)]
    return devices


def _body(command: Command, **fields: object) -> bytes:
    """Of a request that is the same in all versions."""
    return NEWEST.pack(command, **fields)


def _must_be_asked(tensor: Tensor) -> bool:
    """Whether a server may want room or padding beyond nbytes for a tensor's own sake."""
    return SIZES[tensor.type].block_size > 1 and tensor.ne[0] % 512 != 0 and tensor.view_src is None


class RpcDevice(Device):
    """A device of a server."""

    kind = Kind.GPU

    def __init__(self, client: Client, number: int, name: str, hash_weights: bool = True) -> None:
        self.client = client
        self.number = number
        self.name = name
        self.description = client.endpoint
        self.memory_name = f"RPC{number}[{client.endpoint}]"  # ggml_backend_rpc_buffer_type in ggml-rpc.cpp
        self.hash_weights = hash_weights
        self.alignment = int(self._ask(Command.GET_ALIGNMENT)["alignment"][0])
        self.max_size = int(self._ask(Command.GET_MAX_SIZE)["max_size"][0])
        self._alloc_sizes: dict[tuple[object, ...], int] = {}
        if not self.alignment or self.alignment & (self.alignment - 1) or self.alignment > MAX_ALIGNMENT:
            reason = f"{self.alignment} is not a power of two up to {MAX_ALIGNMENT}"
            raise client.distrust(Command.GET_ALIGNMENT, reason)

    def _ask(self, command: Command) -> Record:
        return self.client.ask(command, _body(command, device=self.number))

    @property
    def lost(self) -> str | None:
        return self.client.lost

    def give_up(self) -> None:
        self.client.hang_up()

    def memory(self) -> tuple[int, int]:
        answer = self._ask(Command.GET_DEVICE_MEMORY)
        free, total = int(answer["free"][0]), int(answer["total"][0])
        return (free, total) if total else host_memory()  # a server that does not say: as the reference client does

    def why_not(self, node: Tensor) -> str | None:
        """The protocol has no question for this: a server is taken to compute every op that is known here."""
        return None if node.op in RULES else f"{Op(node.op).name} cannot be sent"

    def alloc_buffer(self, size: int, usage: Usage = Usage.ANY) -> "RpcBuffer":
        if size > MAX_ADDRESS:
            raise DeviceError(f"{self.name} ({self.client.endpoint}): no room for a buffer of {size} bytes")
        body = _body(Command.ALLOC_BUFFER, device=self.number, size=size)
        answer = self.client.ask(Command.ALLOC_BUFFER, body)
        handle, given = int(answer["remote_ptr"][0]), int(answer["remote_size"][0])
        if not handle:
            raise DeviceError(f"{self.name} ({self.client.endpoint}): no room for a buffer of {size} bytes")
        if given < size:
            raise self.client.distrust(Command.ALLOC_BUFFER, f"the server gave {given} bytes, {size} were asked for")
        return RpcBuffer(self, handle, size, usage)

    def alloc_size(self, tensor: Tensor) -> int:
        if not _must_be_asked(tensor) and tensor.op not in MAY_EXPAND:
            return tensor.nbytes
        # all that the question tells of shapes: a server may need room for what it makes of the sources
        shapes = tuple(None if s is None else (s.type, s.ne, s.nb) for s in tensor.src)
        key = tensor.type, tensor.op, tensor.op_params, tensor.ne, tensor.nb, shapes
        known = self._alloc_sizes.get(key)
        if known is None:
            sources = np.zeros(MAX_SRC, TENSOR)
            for i, source in enumerate(tensor.src):
                if source is not None:
                    sources[i : i + 1] = write_tensors([source], self.place, {})
            body = _body(
                Command.GET_ALLOC_SIZE,
                device=self.number,
                tensor=unpack(TENSOR, write_tensor(tensor, self.place)),
                srcs=sources,
            )
            known = int(self.client.ask(Command.GET_ALLOC_SIZE, body)["alloc_size"][0])
            if known > MAX_ADDRESS:
                reason = f"{known} bytes for a tensor of {tensor.nbytes}"
                raise self.client.distrust(Command.GET_ALLOC_SIZE, reason)
            self._alloc_sizes[key] = known
        return max(known, tensor.nbytes)  # strides over 4 GiB arrive cut: the answer may be too small

    def open(self, n_threads: int | None = None) -> "RpcBackend":
        """The number of threads is the server's own."""
        return RpcBackend(self)

    def place(self, tensor: Tensor) -> tuple[int, int]:
        """(handle, data) of a tensor on this endpoint; (0, 0) of all others."""
        buffer = tensor.buffer
        if isinstance(buffer, RpcBuffer) and buffer.device.client is self.client:
            return buffer.handle, tensor.data
        return 0, 0


class RpcBuffer(Buffer):
    """Memory of a server's device, by its handle."""

    device: RpcDevice

    def __init__(self, device: RpcDevice, handle: int, size: int, usage: Usage) -> None:
        self.device = device
        self.client = device.client
        self.handle = handle
        self.size = size
        self.usage = usage
        self.base = 0
        self._records: dict[tuple[object, ...], Record] = {}
        self._heads: dict[tuple[object, ...], bytes] = {}
        body = _body(Command.BUFFER_GET_BASE, remote_ptr=handle)
        self.base = int(self.client.ask(Command.BUFFER_GET_BASE, body)["base_ptr"][0])
        if self.base % device.alignment or (size and not self.base) or self.base > MAX_ADDRESS - size:
            reason = f"0x{self.base:x} is not a base address of {size} bytes"
            raise self.client.distrust(Command.BUFFER_GET_BASE, reason)
        self.client.add_user()

    def place(self, tensor: Tensor, offset: int) -> None:
        super().place(tensor, offset)
        if _must_be_asked(tensor):
            self.client.tell(Command.INIT_TENSOR, self._record(tensor).tobytes())

    def set(self, tensor: Tensor, data: Bytes, offset: int = 0) -> None:
        content = np.frombuffer(data, np.uint8).data
        assert offset >= 0 and offset + len(content) <= tensor.nbytes, (tensor, offset, len(content))
        keep = self.usage is Usage.WEIGHTS and len(content) > HASH_ABOVE and self.device.hash_weights
        if keep and self._has(self._record(tensor), offset, content):
            return
        self.client.tell(Command.SET_TENSOR, self._head(Command.SET_TENSOR, tensor, offset, keep), content)

    def _has(self, record: Record, offset: int, content: memoryview) -> bool:
        """Whether the server had these bytes on disk and has put them in place."""
        body = _body(
            Command.SET_TENSOR_HASH, tensor=sign(record, self.client.key), offset=offset, hash=content_hash(content)
        )
        return bool(self.client.ask(Command.SET_TENSOR_HASH, body)["result"][0])

    def get(self, tensor: Tensor, offset: int = 0, size: int | None = None) -> bytes:
        size = tensor.nbytes - offset if size is None else size
        assert offset >= 0 and size >= 0 and offset + size <= tensor.nbytes, (tensor, offset, size)
        memory = bytearray(size)
        body = self._head(Command.GET_TENSOR, tensor, offset, size)
        self.client.ask(Command.GET_TENSOR, body, into=memoryview(memory))
        return bytes(memory)

    def memset(self, tensor: Tensor, value: int, offset: int = 0, size: int | None = None) -> None:
        size = tensor.nbytes - offset if size is None else size
        assert offset >= 0 and size >= 0 and offset + size <= tensor.nbytes, (tensor, offset, size)
        record = self._record(tensor)
        body = _body(Command.MEMSET_TENSOR, tensor=record, offset=offset, size=size, value=value)
        self.client.tell(Command.MEMSET_TENSOR, body)

    def clear(self, value: int) -> None:
        self.client.tell(Command.BUFFER_CLEAR, _body(Command.BUFFER_CLEAR, remote_ptr=self.handle, value=value))

    def copy(self, src: Tensor, dst: Tensor) -> bool:
        if not isinstance(src.buffer, RpcBuffer) or src.buffer.client is not self.client:
            return False
        body = _body(Command.COPY_TENSOR, src=src.buffer._record(src), dst=self._record(dst))
        return bool(self.client.ask(Command.COPY_TENSOR, body)["result"][0])

    def free(self) -> None:
        """A stock server then forgets its graphs, so the next run of each sends it whole again."""
        handle, self.handle, self.size = self.handle, 0, 0
        if not handle:
            return
        with self.client.lock:
            self.client.sent.buffer_freed()
            self.client.probe = b""  # its tensor may have gone; and a free waits for computations by itself
            if not self.client.broken:
                with contextlib.suppress(RpcError):  # the server is gone, and the buffer with it
                    self.client.tell(Command.FREE_BUFFER, _body(Command.FREE_BUFFER, remote_ptr=handle), urgent=True)
            self.client.remove_user()

    def _head(self, command: Command, tensor: Tensor, offset: int, more: int) -> bytes:
        """The body of a request without its data; `more` is its third field. Kept, as the same few inputs are written
        for every token."""
        key = command, offset, more, tensor.data, tensor.type, tensor.ne, tensor.nb
        head = self._heads.get(key)
        if head is None:
            if len(self._heads) >= MAX_RECORDS:
                self._heads.clear()
            third = "size" if command is Command.GET_TENSOR else "cache_flag"
            record = self._record(tensor)
            if command is Command.SET_TENSOR and more:  # to be kept on disk
                record = sign(record, self.client.key)
            head = _body(command, tensor=record, offset=offset, **{third: more})
            self._heads[key] = head
        return head

    def _record(self, tensor: Tensor) -> Record:
        key = tensor.data, tensor.type, tensor.ne, tensor.nb
        record = self._records.get(key)
        if record is None:
            if len(self._records) >= MAX_RECORDS:
                self._records.clear()
            record = self._records[key] = unpack(TENSOR, write_tensor(tensor, self.device.place))
        return record


class RpcPlan(Plan):
    """The request that computes a graph, ready to be sent. `number` is its own among all of this process."""

    def __init__(self, number: int, protocol: Protocol, body: bytes, n_nodes: int, probe: bytes) -> None:
        """`probe`: the request for no bytes of a result, which is answered when the graph has been computed."""
        self.number = number
        self.probe = probe
        self.protocol = protocol
        self.body = body
        self.n_nodes = n_nodes


class RpcBackend(Backend):
    """Runs what it is given in order; results and refusals show at the next `get`."""

    device: RpcDevice
    repeats = True

    def __init__(self, device: RpcDevice) -> None:
        self.device = device
        self._open = True
        device.client.add_user()

    def plan(
        self, graph: Graph, *, cancelled: Callable[[], bool] | None = None, max_work: int | None = None
    ) -> RpcPlan:
        nodes = [node for node in graph.nodes if node.op not in VIEW_OPS]
        for node in nodes:
            reason = self.device.why_not(node)
            if reason is not None:
                raise UnsupportedError(f"{self.device.name}: node {node.name!r}: {reason}")
        number, protocol = next(_numbers), self.device.client.protocol
        to = protocol, self.device.number, protocol.uid(number)
        if graph.repeats is None:
            body, count = write_graph(*to, graph, self.device.place), len(nodes)
        else:
            body, count = write_repeated(*to, graph, self.device.place)
        probe = b""
        if some := [node for node in nodes if node.nelements]:
            record = unpack(TENSOR, write_tensor(some[-1], self.device.place))
            probe = _body(Command.GET_TENSOR, tensor=record)
        return RpcPlan(number, protocol, body, count, probe)

    def begin(self, graph: Graph) -> Begun:
        plan = self.plan(graph)
        return Begun([], lambda: plan)

    def compute(self, plan: Plan) -> None:
        """Sends a few bytes when the server has the graph, and the graph otherwise."""
        assert isinstance(plan, RpcPlan)
        if not plan.n_nodes:
            return
        device, client, protocol = self.device.number, self.device.client, plan.protocol
        with client.lock:
            client.computing = True
            client.probe = plan.probe
            if client.sent.has(device, plan.number):
                body = protocol.pack(Command.GRAPH_RECOMPUTE, device=device, uid=protocol.uid(plan.number))
                client.tell(Command.GRAPH_RECOMPUTE, body, urgent=True)
            else:
                assert protocol is client.protocol, "a plan made for another server"
                client.sent.add(device, plan.number)
                client.tell(Command.GRAPH_COMPUTE, plan.body, urgent=True)

    def flush(self) -> None:
        self.device.client.flush()

    def synchronize(self) -> None:
        """A small question whose answer comes after all that was handed over has been computed."""
        client = self.device.client
        with client.lock:
            if client.probe:
                client.ask(Command.GET_TENSOR, client.probe, into=memoryview(bytearray()))
            else:
                client.ask(Command.DEVICE_COUNT)

    def abort(self) -> None:
        """End the wait for results. The server computes on; it hears of it only when the connection is closed."""
        self.device.client.interrupt()

    def close(self) -> None:
        if self._open:
            self._open = False
            self.device.client.remove_user()
