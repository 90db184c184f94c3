"""What one client writes into its tensors and reads from them.

Owns the way of the bytes: straight into a tensor where the device's memory is this machine's, else by way of memory that
is counted while they pass. It must not know a socket. Facts: ggml-rpc.cpp, `rpc_server`.
"""

import logging
from collections.abc import Callable, Iterator
from typing import NamedTuple

from pyggml.backend.host import HostBuffer
from pyggml.tensor import Tensor
from pyggml_rpc.buffers import Buffers
from pyggml_rpc.client_state import ClientState
from pyggml_rpc.connection import Piece, Request, TensorBody, TensorHead
from pyggml_rpc.errors import RefusedError
from pyggml_rpc.pieces import CHUNK, Arriving, Pieces
from pyggml_rpc.records import check_range, read_tensors, signer
from pyggml_rpc.wire import Command, Record

log = logging.getLogger("pyggml.rpc")

MAX_KNOWN = 256  # a connection


class Range(NamedTuple):
    """What a SET_TENSOR or GET_TENSOR is about. `sender`: whose the bytes are if they are to be kept on disk, else ""."""

    tensor: Tensor
    offset: int
    memory: memoryview
    sender: str


class Tensors:
    """One client's."""

    def __init__(self, client: ClientState, buffers: Buffers) -> None:
        self._client = client
        self._buffers = buffers
        # by the request, without data, and the data's size, as the same few come with every token
        self.known: dict[tuple[bytes, int], Range] = {}
        self._incoming: Range | None = None
        self._pieces: Arriving | None = None
        self.handlers = {
            Command.INIT_TENSOR: self._init,
            Command.MEMSET_TENSOR: self._memset,
            Command.SET_TENSOR_HASH: self._set_hash,
            Command.COPY_TENSOR: self._copy,
            Command.GET_TENSOR_2D: self._get_2d,
        }

    def clear(self) -> None:
        """Forget all ranges."""
        self.known.clear()
        self._incoming = self._pieces = None

    def tensor(self, records: Record) -> Tensor:
        """A tensor that lies in a buffer of this connection. Raises RefusedError."""
        (tensor,) = read_tensors(records, self._buffers.by_handle)
        if tensor.buffer is None:
            raise RefusedError(f"tensor {tensor.name!r}: in no buffer of this connection")
        return tensor

    # ---- in

    def accept(self, head: TensorHead) -> memoryview:
        """The memory that the first bytes behind this head go to. Raises RefusedError and what else keeps them out."""
        if head.command is Command.SET_TENSOR_2D:
            return self._accept_pieces(head)
        self._incoming = self.known.get((head.body, head.size))
        if self._incoming is None:
            record = head.record
            tensor, offset = self.tensor(record["tensor"]), int(record["offset"][0])
            check_range(tensor, offset, head.size)
            memory = _host_memory(tensor, offset, head.size)
            here = memory is not None
            if memory is None:
                self._client.stage(head.size)
                memory = memoryview(bytearray(head.size))
            sender = self._sender(record["tensor"]) if record["cache_flag"][0] else ""
            self._incoming = Range(tensor, offset, memory, sender)
            if here:
                self._remember((head.body, head.size), self._incoming)
        return self._incoming.memory

    def _accept_pieces(self, head: TensorHead) -> memoryview:
        pieces = Pieces(self.tensor(head.record["tensor"]), head.record)
        if pieces.total != head.size:
            raise RefusedError(f"{pieces.n} pieces of {pieces.size} bytes are not the {head.size} that come")
        self._client.stage(min(CHUNK, pieces.total))
        self._pieces = Arriving(pieces)
        return self._pieces.memory()

    def _remember(self, key: tuple[bytes, int], known: Range) -> None:
        if len(self.known) >= MAX_KNOWN:
            self.known.clear()
        self.known[key] = known

    def store(self, body: TensorBody) -> memoryview | None:
        """The bytes are here: send them on if the device's memory is elsewhere, and keep them if that was asked. The
        memory for the next ones, if some are left."""
        if self._pieces is not None:
            self._pieces.arrived()
            if body.left:
                return self._pieces.memory()
            self._pieces = None
            self._client.unstage()
            return None
        assert self._incoming is not None
        tensor, offset, memory, sender = self._incoming
        self._incoming = None
        assert tensor.buffer is not None
        if not isinstance(tensor.buffer, HostBuffer):
            tensor.buffer.set(tensor, memory, offset)
        if sender and self._client.server.cache is not None:
            self._client.server.cache.store(sender, memory)
        del memory
        self._client.unstage()
        return None

    def _sender(self, record: Record) -> str:
        """Who a weight counts as coming from: who has the key in its record, else all of the client's address."""
        key = signer(record)
        return f"key {key.hex()}" if key else f"address {self._client.address}"

    def _set_hash(self, request: Record) -> list[Piece]:
        """Whether the server has these bytes, and has put them in place; a hash without a length means all of the tensor
        from `offset`."""
        tensor, offset = self.tensor(request["tensor"]), int(request["offset"][0])
        check_range(tensor, offset, 0)
        size = tensor.nbytes - offset
        memory = _host_memory(tensor, offset, size)
        for load in self._kept(self._sender(request["tensor"]), int(request["hash"][0]), size):
            if memory is None:
                self._client.stage(size)
            target = memory if memory is not None else memoryview(bytearray(size))
            if load(target):
                if memory is None:
                    assert tensor.buffer is not None
                    tensor.buffer.set(tensor, target, offset)
                return [self._client.answer(Command.SET_TENSOR_HASH, result=1)]
        return [self._client.answer(Command.SET_TENSOR_HASH, result=0)]

    def _kept(self, sender: str, key: int, size: int) -> Iterator[Callable[[memoryview], bool]]:
        """Where such bytes may be read from: what this client sent before, and what the operator laid ready for all."""
        cache, preload, client = self._client.server.cache, self._client.server.preload, self._client
        if cache is not None and cache.path(sender, key, size).exists():
            yield lambda memory: cache.load(sender, key, memory)
        if preload is not None and preload.find(key, size, lambda: client.gone):
            yield lambda memory: preload.load(key, memory, lambda: client.gone)

    def _memset(self, request: Record) -> None:
        tensor = self.tensor(request["tensor"])
        offset, size = int(request["offset"][0]), int(request["size"][0])
        check_range(tensor, offset, size)
        assert tensor.buffer is not None
        tensor.buffer.memset(tensor, int(request["value"][0]), offset, size)

    def _init(self, request: Record) -> None:
        """Nothing to prepare: buffers begin zeroed, padding included."""
        (tensor,) = read_tensors(request["tensor"], self._buffers.by_handle)
        if tensor.buffer is None:
            log.debug("%s: INIT_TENSOR of %r, which is in no buffer", self._client.peer, tensor.name)

    def _copy(self, request: Record) -> list[Piece]:
        """All bytes of src to the start of dst, whatever their shapes."""
        src, dst = self.tensor(request["src"]), self.tensor(request["dst"])
        if src.nbytes > dst.nbytes:
            raise RefusedError(f"{src.nbytes} bytes of {src.name!r} do not fit in the {dst.nbytes} of {dst.name!r}")
        assert src.buffer is not None and dst.buffer is not None
        if not dst.buffer.copy(src, dst):
            self._client.stage(src.nbytes)
            dst.buffer.set(dst, src.buffer.get(src))
        return [self._client.answer(Command.COPY_TENSOR, result=1)]

    # ---- out

    def get(self, request: Request) -> Piece:
        """GET_TENSOR: the bytes, a view where they are in this machine's memory. Raises RefusedError, NoRoomError."""
        known = self.known.get((bytes(request.body), 0))
        if known is not None:
            return known.memory
        record = request.record
        tensor, offset, size = self.tensor(record["tensor"]), int(record["offset"][0]), int(record["size"][0])
        check_range(tensor, offset, size)
        memory = _host_memory(tensor, offset, size)
        if memory is None:
            assert tensor.buffer is not None
            self._client.stage(size)
            return tensor.buffer.get(tensor, offset, size)
        self._remember((bytes(request.body), 0), Range(tensor, offset, memory, ""))
        return memory

    def _get_2d(self, request: Record) -> list[Piece]:
        pieces = Pieces(self.tensor(request["tensor"]), request)
        self._client.stage(pieces.total)
        return [pieces.get()]


def _host_memory(tensor: Tensor, offset: int, size: int) -> memoryview | None:
    """The tensor's own bytes, if they are in this machine's memory."""
    if not isinstance(tensor.buffer, HostBuffer):
        return None
    return tensor.buffer.bytes_of(tensor, offset, size).data
