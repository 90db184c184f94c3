"""What one client owns on a server, and the execution of its requests.

Owns handles, foreign buffers and the refusal of whatever is not provably harmless; it must not know a
socket. A refusal raises RefusedError (the protocol has no error frame: whoever owns the connection closes it). Facts:
ggml-rpc.cpp, `rpc_server`; where ours is stricter or kinder is said at the method.
"""

import logging
import secrets
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from pyggml.backend.base import Buffer
from pyggml.backend.host import HostBuffer
from pyggml.errors import DeviceError, PyggmlError
from pyggml.tensor import Tensor
from pyggml_rpc.comm import Communicators
from pyggml_rpc.connection import Closed, Piece, Request, ServerConnection, TensorBody, TensorHead
from pyggml_rpc.errors import RefusedError
from pyggml_rpc.graphs import Graphs
from pyggml_rpc.memory import Account, NoRoomError
from pyggml_rpc.pieces import CHUNK, Arriving, Pieces
from pyggml_rpc.records import Lent, check_range, read_tensors, signer
from pyggml_rpc.running import Running
from pyggml_rpc.server import Server, Slot
from pyggml_rpc.talk import mib
from pyggml_rpc.wire import HELLO_REPLY, WAITS, Command, Record, pack

log = logging.getLogger("pyggml.rpc")

MAX_BUFFERS = 1 << 14  # a connection
MAX_KNOWN = 256  # a connection
BASE_STEP = 1 << 32  # synthetic base addresses are multiples of it

Meant: TypeAlias = tuple[Tensor, int, memoryview, str]
"""A tensor, an offset in it, the memory there, and who sent it if it is to be kept on disk."""

UNCOUNTED = 512  # buffers of a connection that are not worth counting, as little else of a connection is
BUFFER_COST = 2048  # bytes that the objects of each one beyond those take


@dataclass
class Figures:
    """What one client has had, for the log."""

    began: float = field(default_factory=time.monotonic)
    requests: int = 0
    graphs: int = 0
    received: int = 0  # bytes of requests' bodies
    sent: int = 0

    def line(self, most: int) -> str:
        """`most`: bytes of memory that it held at once."""
        seconds = time.monotonic() - self.began
        return (
            f"{seconds:.1f} s, {self.graphs} graphs, {mib(most)} lent at most, "
            f"{mib(self.received)} received, {mib(self.sent)} sent"
        )


class Session:
    """All that one client owns. It ends with the connection, and everything of it with it.

    `owner` is who it counts for where clients' shares of memory are counted: connections with one owner have one share.
    """

    def __init__(self, server: Server, peer: str = "client", owner: Hashable = None) -> None:
        self.server = server
        self.protocol = server.protocol
        self.peer = peer
        self.owner = object() if owner is None else owner
        self._address = "of this machine" if owner is None else str(owner)
        self.greeted = False  # HELLO has been answered
        self._came = False  # it has had memory: not one of the short connections that stock clients begin with
        self._lowering = False  # a graph is being taken apart and made ready
        self.running = Running(peer)
        self.figures = Figures()
        ledgers = {id(ledger): ledger for ledger in (server.host, *(slot.ledger for slot in server.slots))}
        self._accounts = {key: Account(ledger, self.owner) for key, ledger in ledgers.items()}
        self.host = self._accounts[id(server.host)]
        self._arriving = 0  # bytes of a graph that is being received
        self._staged = 0  # bytes of a tensor on its way to or from a device's memory
        self.finished = False  # the peer has closed between two requests
        self.gone = False  # nobody waits for results any more
        self.lent: dict[int, Lent] = {}
        # the memory that a SET_TENSOR or GET_TENSOR means, as the same few come with every token
        self._known: dict[tuple[bytes, int], Meant] = {}
        self._next_base = BASE_STEP * (1 + secrets.randbelow(1 << 24))
        self.graphs = Graphs(self)
        self._comm = Communicators(self)
        self._incoming: Meant | None = None
        self._pieces: Arriving | None = None
        self._handlers: dict[Command, Callable[[Record], Sequence[Piece] | None]] = {
            Command.HELLO: self._hello,
            Command.DEVICE_COUNT: self._device_count,
            Command.GET_ALIGNMENT: self._get_alignment,
            Command.GET_MAX_SIZE: self._get_max_size,
            Command.GET_DEVICE_MEMORY: self._get_device_memory,
            Command.GET_ALLOC_SIZE: self._get_alloc_size,
            Command.ALLOC_BUFFER: self._alloc_buffer,
            Command.BUFFER_GET_BASE: self._buffer_get_base,
            Command.FREE_BUFFER: self._free_buffer,
            Command.BUFFER_CLEAR: self._buffer_clear,
            Command.INIT_TENSOR: self._init_tensor,
            Command.MEMSET_TENSOR: self._memset_tensor,
            Command.SET_TENSOR_HASH: self._set_tensor_hash,
            Command.COPY_TENSOR: self._copy_tensor,
            Command.GRAPH_RECOMPUTE: self._graph_recompute,
            Command.GET_TENSOR_2D: self._get_tensor_2d,
            Command.COMM_INIT: self._comm_init,
            Command.COMM_ALLREDUCE: self._comm_allreduce,
            Command.COMM_FREE: self._comm_free,
        }

    # ---- the loop's body

    def run(self, connection: ServerConnection) -> Iterator[list[Piece]]:
        """Execute all requests that have arrived whole, yielding frames to send; sets `finished` when the peer closed.

        Raises RemoteProtocolError or RefusedError: the connection is to be closed, with that line in the log.
        """
        while (event := connection.next_event()) is not None:
            if isinstance(event, Closed):
                self.finished = True
                return
            if isinstance(event, TensorHead):
                connection.receive_into(self._accept(event))
            elif isinstance(event, TensorBody):
                self._store(event)
                if event.left:
                    assert self._pieces is not None
                    connection.receive_into(self._pieces.memory())
            else:
                reply = self.execute(event)
                if reply is not None:
                    frame = connection.reply(*reply)
                    self.figures.sent += sum(len(piece) for piece in frame)
                    yield frame
                    self._unstage()

    def execute(self, request: Request) -> Sequence[Piece] | None:
        """The pieces of the reply's body; None for a command without one."""
        self.server.counters.add(request.command, len(request.body))
        self.figures.requests += 1
        self.figures.received += len(request.body)
        self._settle(wait=request.command in WAITS)
        self._lowering = request.command in (Command.GRAPH_COMPUTE, Command.GRAPH_RECOMPUTE)
        try:
            if request.command is Command.GRAPH_COMPUTE:
                self.graphs.compute(self._slot(request.record), request)
                return None
            if request.command is Command.GET_TENSOR:
                return [self._get_tensor(request)]
            return self._handlers[request.command](request.record)
        except (PyggmlError, MemoryError) as error:
            raise self._refusal(request.command, error) from error
        finally:
            self._lowering = False
            self.receiving(0)

    def _settle(self, wait: bool) -> None:
        """Learn what became of computations: of those that are over, or of all."""
        try:
            if wait:
                self.running.wait()
            else:
                self.running.check()
        except (PyggmlError, MemoryError) as error:
            raise self._refusal(Command.GRAPH_COMPUTE, error) from error

    @property
    def busy(self) -> bool:
        """Whether a graph is being lowered or computed."""
        return self._lowering or self.running.active

    def receiving(self, size: int) -> None:
        """A graph that is being received takes so many bytes from now on. Raises RefusedError when they are not there."""
        more, self._arriving = size - self._arriving, size
        try:
            if more > 0:
                self.host.take(more)
            else:
                self.host.give(-more)
        except NoRoomError as error:
            self._arriving -= more
            raise self._refusal(Command.GRAPH_COMPUTE, error) from error

    def _stage(self, size: int) -> None:
        """Count what passes through this machine's memory. Raises NoRoomError."""
        self._unstage()
        self.host.take(size)
        self._staged = size

    def _unstage(self) -> None:
        self.host.give(self._staged)
        self._staged = 0

    def _refusal(self, command: Command, error: Exception) -> RefusedError:
        if not self.gone:
            self.server.counters.add_refused()
        return RefusedError(f"{command.name}: {error or type(error).__name__}")

    def abort(self) -> None:
        """From any thread: the peer is gone, end what is being computed for it."""
        self.gone = True
        self.server.lowering.wake()
        for slot in self.server.slots:
            slot.abort(self)

    @property
    def holds_memory(self) -> bool:
        return bool(self.lent)

    @property
    def most_lent(self) -> int:
        """Bytes that it held at once, of all kinds."""
        return sum(account.most for account in self._accounts.values())

    def close(self) -> None:
        """Free all that the client left behind."""
        self.gone = True
        self.running.close(self.abort)
        self._comm.close()
        self.graphs.clear()
        self._known.clear()
        self._incoming = self._pieces = None
        for handle in list(self.lent):
            self._give_back(handle)
        for account in self._accounts.values():
            account.close()
        self._arriving = self._staged = 0

    def _answer(self, command: Command, **fields: int) -> bytes:
        layout = self.protocol[command].reply
        assert layout is not None
        return pack(layout, **fields)

    # ---- small questions

    def _hello(self, _request: Record) -> list[Piece]:
        self.greeted = True
        major, minor, patch = self.protocol.version
        return [pack(HELLO_REPLY, major=major, minor=minor, patch=patch)]

    def _device_count(self, _request: Record) -> list[Piece]:
        return [self._answer(Command.DEVICE_COUNT, device_count=len(self.server.slots))]

    def _get_alignment(self, request: Record) -> list[Piece]:
        return [self._answer(Command.GET_ALIGNMENT, alignment=self._slot(request).device.alignment)]

    def _get_max_size(self, request: Record) -> list[Piece]:
        return [self._answer(Command.GET_MAX_SIZE, max_size=self._slot(request).device.max_size)]

    def _get_device_memory(self, request: Record) -> list[Piece]:
        free, total = self.account(self._slot(request)).offer()
        return [self._answer(Command.GET_DEVICE_MEMORY, free=free, total=total)]

    def _get_alloc_size(self, request: Record) -> list[Piece]:
        """From shapes alone: buffers in these records may be anybody's."""
        slot = self._slot(request)
        (tensor,) = read_tensors(request["tensor"], None)
        sources = request["srcs"][0]
        present = np.flatnonzero(sources["id"])
        src: list[Tensor | None] = [None] * (int(present.max(initial=-1)) + 1)
        for i, source in zip(present.tolist(), read_tensors(sources[present], None), strict=True):
            src[i] = source
        tensor.src = tuple(src)
        size = slot.device.alloc_size(tensor)
        if size >= 1 << 64:
            raise RefusedError(f"tensor {tensor.name!r}: {size} bytes")
        return [self._answer(Command.GET_ALLOC_SIZE, alloc_size=size)]

    def _slot(self, request: Record) -> Slot:
        return self._slot_of(int(request["device"][0]))

    def _slot_of(self, device: int) -> Slot:
        if device >= len(self.server.slots):
            raise RefusedError(f"device {device} of {len(self.server.slots)}")
        return self.server.slots[device]

    # ---- buffers

    def _alloc_buffer(self, request: Record) -> list[Piece]:
        """0/0 when the memory is not there: a stock client dies of a closed connection, but not of that."""
        device, size = int(request["device"][0]), int(request["size"][0])
        slot = self._slot_of(device)
        try:
            buffer = self._lend(slot, size)
        except (DeviceError, MemoryError) as error:
            log.warning("%s: ALLOC_BUFFER: %s", self.peer, error)
            return [self._answer(Command.ALLOC_BUFFER)]
        log.log(
            logging.DEBUG if self._came else logging.INFO,
            "%s: %s %s of %s",
            *(self.peer, "lent" if self._came else "came, and was lent", mib(size), slot.device.name),
        )
        self._came = True
        handle = secrets.randbelow((1 << 64) - 1) + 1
        assert handle not in self.lent and buffer.size >= size
        base = self._next_base if size else 0
        self._next_base += BASE_STEP * (1 + -(-size // BASE_STEP))
        self.lent[handle] = Lent(handle, base, buffer, device, size)
        return [self._answer(Command.ALLOC_BUFFER, remote_ptr=handle, remote_size=buffer.size)]

    def _lend(self, slot: Slot, size: int) -> Buffer:
        """A new buffer, counted. Raises DeviceError, of which NoRoomError is one."""
        if len(self.lent) >= MAX_BUFFERS or not self.server.count_buffers(1):
            raise NoRoomError(f"no room for a buffer of {size} bytes: there are too many buffers")
        account, cost = self.account(slot), self._buffer_cost(len(self.lent))
        before = account.held, self.host.held
        try:
            account.take(size)
            self.host.take(cost)
            return slot.device.alloc_buffer(size)
        except BaseException:
            self.server.count_buffers(-1)
            for one, held in zip((account, self.host), before, strict=True):
                one.give(max(0, one.held - held))
            raise

    def _buffer_cost(self, others: int) -> int:
        return BUFFER_COST if others >= UNCOUNTED else 0

    def account(self, slot: Slot) -> Account:
        return self._accounts[id(slot.ledger)]

    def _buffer_get_base(self, request: Record) -> list[Piece]:
        return [self._answer(Command.BUFFER_GET_BASE, base_ptr=self._lent_by(request).base)]

    def _buffer_clear(self, request: Record) -> None:
        self._lent_by(request).buffer.clear(int(request["value"][0]))

    def _free_buffer(self, request: Record) -> None:
        """Graphs that do not touch this buffer stay: stock clients recompute them."""
        self._give_back(self._lent_by(request).handle)

    def _lent_by(self, request: Record) -> Lent:
        handle = int(request["remote_ptr"][0])
        lent = self.lent.get(handle)
        if lent is None:
            raise RefusedError(f"0x{handle:x} is no buffer of this connection")
        return lent

    def _give_back(self, handle: int) -> None:
        self.graphs.forget_those_with(handle)
        self._known.clear()
        lent = self.lent.pop(handle)
        lent.buffer.free()
        self.server.count_buffers(-1)
        self.account(self.server.slots[lent.device]).give(lent.size)
        self.host.give(self._buffer_cost(len(self.lent)))

    # ---- tensors

    def _tensor(self, records: Record) -> Tensor:
        """A tensor that lies in a buffer of this connection."""
        (tensor,) = read_tensors(records, self.lent)
        if tensor.buffer is None:
            raise RefusedError(f"tensor {tensor.name!r}: in no buffer of this connection")
        return tensor

    def _accept(self, head: TensorHead) -> memoryview:
        """The memory that SET_TENSOR's bytes go to: the tensor's own where the device's memory is the host's."""
        self._settle(wait=True)
        self.server.counters.add(head.command, head.size)
        self.figures.requests += 1
        self.figures.received += head.size
        if head.command is Command.SET_TENSOR_2D:
            return self._accept_pieces(head)
        self._incoming = self._known.get((head.body, head.size))
        if self._incoming is None:
            try:
                record = head.record
                tensor, offset = self._tensor(record["tensor"]), int(record["offset"][0])
                check_range(tensor, offset, head.size)
                memory = _host_memory(tensor, offset, head.size)
                here = memory is not None
                if memory is None:
                    self._stage(head.size)
                    memory = memoryview(bytearray(head.size))
            except (PyggmlError, MemoryError) as error:
                raise self._refusal(head.command, error) from error
            self._incoming = tensor, offset, memory, self._sender(record["tensor"]) if record["cache_flag"][0] else ""
            if here:
                self._remember((head.body, head.size), self._incoming)
        return self._incoming[2]

    def _accept_pieces(self, head: TensorHead) -> memoryview:
        try:
            pieces = Pieces(self._tensor(head.record["tensor"]), head.record)
            if pieces.total != head.size:
                raise RefusedError(f"{pieces.n} pieces of {pieces.size} bytes are not the {head.size} that come")
            self._stage(min(CHUNK, pieces.total))
            self._pieces = Arriving(pieces)
        except (PyggmlError, MemoryError) as error:
            raise self._refusal(head.command, error) from error
        return self._pieces.memory()

    def _remember(self, key: tuple[bytes, int], meant: Meant) -> None:
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        self._known[key] = meant

    def _store(self, body: TensorBody) -> None:
        """The bytes are here: send them on if the device's memory is elsewhere, and keep them if that was asked."""
        if self._pieces is not None:
            try:
                self._pieces.arrived()
            except PyggmlError as error:
                raise self._refusal(body.command, error) from error
            if not body.left:
                self._pieces = None
                self._unstage()
            return
        assert self._incoming is not None
        tensor, offset, memory, sender = self._incoming
        self._incoming = None
        assert tensor.buffer is not None
        if not isinstance(tensor.buffer, HostBuffer):
            try:
                tensor.buffer.set(tensor, memory, offset)
            except PyggmlError as error:
                raise self._refusal(body.command, error) from error
        if sender and self.server.cache is not None:
            self.server.cache.store(sender, memory)
        del memory
        self._unstage()

    def _sender(self, record: Record) -> str:
        """Who a weight counts as coming from: who has the key in its record, else all of the client's address."""
        key = signer(record)
        return f"key {key.hex()}" if key else f"address {self._address}"

    def _set_tensor_hash(self, request: Record) -> list[Piece]:
        """Whether this client sent these bytes before; a hash without a length means all of the tensor from `offset`."""
        tensor, offset = self._tensor(request["tensor"]), int(request["offset"][0])
        check_range(tensor, offset, 0)
        cache, size = self.server.cache, tensor.nbytes - offset
        found = False
        if cache is not None:
            sender, key = self._sender(request["tensor"]), int(request["hash"][0])
            memory = _host_memory(tensor, offset, size)
            if memory is not None:
                found = cache.load(sender, key, memory)
            elif cache.path(sender, key, size).exists():
                self._stage(size)
                staging = bytearray(size)
                found = cache.load(sender, key, memoryview(staging))
                if found:
                    assert tensor.buffer is not None
                    tensor.buffer.set(tensor, staging, offset)
        return [self._answer(Command.SET_TENSOR_HASH, result=found)]

    def _get_tensor(self, request: Request) -> Piece:
        known = self._known.get((bytes(request.body), 0))
        if known is not None:
            return known[2]
        record = request.record
        tensor, offset, size = self._tensor(record["tensor"]), int(record["offset"][0]), int(record["size"][0])
        check_range(tensor, offset, size)
        memory = _host_memory(tensor, offset, size)
        if memory is None:
            assert tensor.buffer is not None
            self._stage(size)
            return tensor.buffer.get(tensor, offset, size)
        self._remember((bytes(request.body), 0), (tensor, offset, memory, ""))
        return memory

    def _get_tensor_2d(self, request: Record) -> list[Piece]:
        pieces = Pieces(self._tensor(request["tensor"]), request)
        self._stage(pieces.total)
        return [pieces.get()]

    def _memset_tensor(self, request: Record) -> None:
        tensor = self._tensor(request["tensor"])
        offset, size = int(request["offset"][0]), int(request["size"][0])
        check_range(tensor, offset, size)
        assert tensor.buffer is not None
        tensor.buffer.memset(tensor, int(request["value"][0]), offset, size)

    def _init_tensor(self, request: Record) -> None:
        """Nothing to prepare: buffers begin zeroed, padding included."""
        (tensor,) = read_tensors(request["tensor"], self.lent)
        if tensor.buffer is None:
            log.debug("%s: INIT_TENSOR of %r, which is in no buffer", self.peer, tensor.name)

    def _copy_tensor(self, request: Record) -> list[Piece]:
        """All bytes of src to the start of dst, whatever their shapes."""
        src, dst = self._tensor(request["src"]), self._tensor(request["dst"])
        if src.nbytes > dst.nbytes:
            raise RefusedError(f"{src.nbytes} bytes of {src.name!r} do not fit in the {dst.nbytes} of {dst.name!r}")
        assert src.buffer is not None and dst.buffer is not None
        if not dst.buffer.copy(src, dst):
            self._stage(src.nbytes)
            dst.buffer.set(dst, src.buffer.get(src))
        return [self._answer(Command.COPY_TENSOR, result=1)]

    def _graph_recompute(self, request: Record) -> None:
        self.graphs.recompute(self._slot(request), request)

    # ---- sums over two servers

    def _comm_init(self, request: Record) -> list[Piece]:
        return [self._answer(Command.COMM_INIT, ok=self._comm.join(request))]

    def _comm_allreduce(self, request: Record) -> None:
        tensor, slot = self._tensor(request["tensor"]), self._slot(request)
        assert tensor.buffer is not None
        if tensor.buffer.device is not slot.device:
            raise RefusedError(f"tensor {tensor.name!r} is in memory of another device")
        self._comm.allreduce(int(request["device"][0]), tensor, self._stage)
        self._unstage()

    def _comm_free(self, request: Record) -> None:
        self._slot(request)
        self._comm.leave(int(request["device"][0]))


def _host_memory(tensor: Tensor, offset: int, size: int) -> memoryview | None:
    """The tensor's own bytes, if they are in this machine's memory."""
    if not isinstance(tensor.buffer, HostBuffer):
        return None
    return tensor.buffer.bytes_of(tensor, offset, size).data
