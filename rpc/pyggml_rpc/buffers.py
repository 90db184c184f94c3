"""The buffers that one client has been lent: handles, addresses, what they count for, and the requests about them.

A handle is random and a base address synthetic: neither says where anything lies. Facts: ggml-rpc.cpp, `rpc_server`.
"""

import collections
import contextlib
import logging
import secrets
from collections.abc import Callable

from pyggml.backend.base import Buffer
from pyggml.errors import DeviceError
from pyggml_rpc.client_state import ClientState
from pyggml_rpc.connection import Piece
from pyggml_rpc.errors import RefusedError
from pyggml_rpc.logs import mib
from pyggml_rpc.memory import NoRoomError
from pyggml_rpc.records import ClientBuffer
from pyggml_rpc.served import ServedDevice
from pyggml_rpc.wire import Command, Record

log = logging.getLogger("pyggml.rpc")

MAX_BUFFERS = 1 << 14  # a connection
BASE_STEP = 1 << 32  # synthetic base addresses are multiples of it
UNCOUNTED = 512  # buffers of a connection that are not worth counting, as little else of a connection is
BUFFER_COST = 2048  # bytes that the objects of each one beyond those take


class Buffers:
    """One client's. `by_handle`: the buffers; `devices`: how many of them each device has."""

    def __init__(self, client: ClientState, freed: Callable[[int], None]) -> None:
        self._client = client
        self._freed = freed  # is told a handle, before its buffer goes
        self.by_handle: dict[int, ClientBuffer] = {}
        self.devices: collections.Counter[int] = collections.Counter()
        self._came = False  # it has had memory: not one of the short connections that stock clients begin with
        self._next_base = BASE_STEP * (1 + secrets.randbelow(1 << 24))
        self.handlers = {
            Command.ALLOC_BUFFER: self._alloc,
            Command.BUFFER_GET_BASE: self._get_base,
            Command.FREE_BUFFER: self._free,
            Command.BUFFER_CLEAR: self._clear,
        }

    def only_on(self, device: int) -> bool:
        """Whether no other device has memory for this client, which so can compute nowhere else."""
        return len(self.devices) - (device in self.devices) == 0

    def close(self) -> None:
        """Each is released, whatever becomes of the others."""
        with contextlib.ExitStack() as stack:
            for handle in self.by_handle:
                stack.callback(self._release, handle)

    def _alloc(self, request: Record) -> list[Piece]:
        """0/0 when the memory is not there: a stock client dies of a closed connection, but not of that."""
        device, size = int(request["device"][0]), int(request["size"][0])
        client = self._client
        served = client.served(device)
        try:
            buffer = self._allocate(served, size)
        except (DeviceError, MemoryError) as error:
            log.warning("%s: ALLOC_BUFFER: %s", client.peer, error)
            return [client.answer(Command.ALLOC_BUFFER)]
        log.log(
            logging.DEBUG if self._came else logging.INFO,
            "%s: %s %s of %s",
            *(client.peer, "lent" if self._came else "came, and was lent", mib(size), served.device.name),
        )
        self._came = True
        handle = secrets.randbelow((1 << 64) - 1) + 1
        assert handle not in self.by_handle and buffer.size >= size
        base = self._next_base if size else 0
        self._next_base += BASE_STEP * (1 + -(-size // BASE_STEP))
        self.by_handle[handle] = ClientBuffer(handle, base, buffer, device, size)
        self.devices[device] += 1
        return [client.answer(Command.ALLOC_BUFFER, remote_ptr=handle, remote_size=buffer.size)]

    def _allocate(self, served: ServedDevice, size: int) -> Buffer:
        """A new buffer, counted. Raises DeviceError, of which NoRoomError is one."""
        client = self._client
        if len(self.by_handle) >= MAX_BUFFERS or not client.server.count_buffers(1):
            raise NoRoomError(f"no room for a buffer of {size} bytes: there are too many buffers")
        account, host, cost = client.account(served), client.host, self._cost(len(self.by_handle))
        before = account.held, host.held
        try:
            if served.lost is not None:
                raise DeviceError(served.lost)
            account.take(size)
            host.take(cost)
            return served.device.alloc_buffer(size)
        except BaseException:
            client.server.count_buffers(-1)
            for one, held in zip((account, host), before, strict=True):
                one.give(max(0, one.held - held))
            raise

    def _cost(self, others: int) -> int:
        return BUFFER_COST if others >= UNCOUNTED else 0

    def _get_base(self, request: Record) -> list[Piece]:
        return [self._client.answer(Command.BUFFER_GET_BASE, base_ptr=self._buffer_of(request).base)]

    def _clear(self, request: Record) -> None:
        self._buffer_of(request).buffer.clear(int(request["value"][0]))

    def _free(self, request: Record) -> None:
        """Graphs that do not touch this buffer stay: stock clients recompute them."""
        self._release(self._buffer_of(request).handle)

    def _buffer_of(self, request: Record) -> ClientBuffer:
        handle = int(request["remote_ptr"][0])
        one = self.by_handle.get(handle)
        if one is None:
            raise RefusedError(f"0x{handle:x} is not a buffer of this connection")
        return one

    def _release(self, handle: int) -> None:
        client = self._client
        self._freed(handle)
        one = self.by_handle.pop(handle)
        self.devices[one.device] -= 1
        if not self.devices[one.device]:
            del self.devices[one.device]
        try:
            one.buffer.free()
        finally:
            client.server.count_buffers(-1)
            client.account(client.server.devices[one.device]).give(one.size)
            client.host.give(self._cost(len(self.by_handle)))
