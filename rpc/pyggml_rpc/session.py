"""One client on a server: its requests, one after the other, and what it has of the server's memory and time.

Owns the loop, the small questions, the accounts, and the refusal of whatever is not provably harmless; buffers, tensors,
graphs and sums over two servers have files of their own. It must not know a socket. A refusal raises RefusedError (the
protocol has no error frame: whoever owns the connection closes it). Facts: ggml-rpc.cpp, `rpc_server`; where ours is
stricter or kinder is said at the method.
"""

import contextlib
from collections.abc import Callable, Hashable, Iterator, Sequence

import numpy as np

from pyggml.errors import PyggmlError
from pyggml.tensor import Tensor
from pyggml_rpc.buffers import Buffers
from pyggml_rpc.client_state import ClientState
from pyggml_rpc.communicators import Communicators
from pyggml_rpc.connection import Closed, Piece, Request, ServerConnection, TensorBody, TensorHead
from pyggml_rpc.errors import RefusedError
from pyggml_rpc.graphs import Graphs
from pyggml_rpc.memory import NoRoomError
from pyggml_rpc.records import read_tensors
from pyggml_rpc.server import Server
from pyggml_rpc.tensors import Tensors
from pyggml_rpc.wire import HELLO_REPLY, WAITS, Command, Record, pack


class Session(ClientState):
    """All that one client owns. It ends with the connection, and everything of it with it.

    `owner` is who it counts for where clients' shares of memory are counted: connections with one owner have one share.
    `watched`: somebody calls `abort` when the client leaves.
    """

    def __init__(self, server: Server, peer: str = "client", owner: Hashable = None, *, watched: bool = True) -> None:
        super().__init__(server, peer, owner, watched=watched)
        self.greeted = False  # HELLO has been answered
        self.finished = False  # the peer has closed between two requests
        self._graph = False  # one is being made ready, or computed by this thread
        self._arriving = 0  # bytes of a graph that is being received
        self.buffers = Buffers(self, self._forget_those_with)
        self.tensors = Tensors(self, self.buffers)
        self.graphs = Graphs(self, self.buffers)
        self._comm = Communicators(self)
        self._handlers: dict[Command, Callable[[Record], Sequence[Piece] | None]] = {
            Command.HELLO: self._hello,
            Command.DEVICE_COUNT: self._device_count,
            Command.GET_ALIGNMENT: self._get_alignment,
            Command.GET_MAX_SIZE: self._get_max_size,
            Command.GET_DEVICE_MEMORY: self._get_device_memory,
            Command.GET_ALLOC_SIZE: self._get_alloc_size,
            Command.GRAPH_RECOMPUTE: self._graph_recompute,
            Command.COMM_INIT: self._comm_init,
            Command.COMM_ALLREDUCE: self._comm_allreduce,
            Command.COMM_FREE: self._comm_free,
            **self.buffers.handlers,
            **self.tensors.handlers,
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
                if (memory := self._store(event)) is not None:
                    connection.receive_into(memory)
            else:
                reply = self.execute(event)
                if reply is not None:
                    frame = connection.reply(*reply)
                    self.figures.sent += sum(map(len, frame))
                    yield frame
                    self.unstage()

    def execute(self, request: Request) -> Sequence[Piece] | None:
        """The pieces of the reply's body; None for a command without one."""
        command = request.command
        self._count(command, len(request.body))
        self.settle(wait=command in WAITS)
        self._graph = command in (Command.GRAPH_COMPUTE, Command.GRAPH_RECOMPUTE)
        try:
            if command is Command.GRAPH_COMPUTE:
                self.graphs.compute(self.served_for(request.record), request)
                return None
            if command is Command.GET_TENSOR:
                return [self.tensors.get(request)]
            return self._handlers[command](request.record)
        except (PyggmlError, MemoryError) as error:
            raise self._refusal(command, error) from error
        finally:
            self._graph = False
            self.receiving(0)

    def _accept(self, head: TensorHead) -> memoryview:
        """Where the bytes behind this head go."""
        self.settle(wait=True)
        self._count(head.command, head.size)
        try:
            return self.tensors.accept(head)
        except (PyggmlError, MemoryError) as error:
            raise self._refusal(head.command, error) from error

    def _store(self, body: TensorBody) -> memoryview | None:
        try:
            return self.tensors.store(body)
        except PyggmlError as error:
            raise self._refusal(body.command, error) from error

    def _count(self, command: Command, size: int) -> None:
        self.server.counters.add(command, size)
        self.figures.requests += 1
        self.figures.received += size

    def settle(self, wait: bool) -> None:
        """Learn what became of computations: of those that are over, or of all. Raises RefusedError."""
        try:
            if wait:
                self.running.wait()
            else:
                self.running.check()
        except (PyggmlError, MemoryError) as error:
            raise self._refusal(Command.GRAPH_COMPUTE, error) from error

    def _refusal(self, command: Command, error: Exception) -> RefusedError:
        if not self.gone:
            self.server.counters.add_refused()
        return RefusedError(f"{command.name}: {error or type(error).__name__}")

    @property
    def busy(self) -> bool:
        """Whether a graph is being lowered or computed."""
        return self._graph or self.running.active

    def abort(self) -> None:
        """From any thread: the peer is gone, end what is being computed for it."""
        self.gone = True
        self.server.lowering.wake()
        for served in self.server.devices:
            served.abort(self)

    def close(self) -> None:
        """Free all that the client left behind, and its accounts whatever fails meanwhile."""
        self.gone = True
        with contextlib.ExitStack() as stack:  # the last first
            for account in self._accounts.values():
                stack.callback(account.close)
            stack.callback(self.buffers.close)
            stack.callback(self.tensors.clear)
            stack.callback(self.graphs.clear)
            stack.callback(self._comm.close)
            self.running.close(self.abort)
        self._arriving = self._staged = 0

    # ---- memory

    @property
    def most_held(self) -> int:
        """Bytes that it held at once, of all kinds."""
        return sum(account.most for account in self._accounts.values())

    def _forget_those_with(self, handle: int) -> None:
        """A buffer goes: what was kept about it goes first."""
        self.graphs.forget_those_with(handle)
        self.tensors.known.clear()

    def receiving(self, size: int) -> None:
        """A graph that is being received takes so many bytes from now on. Raises RefusedError when they are not there."""
        more, self._arriving = size - self._arriving, size
        try:
            if more > 0:
                self.host.take(more)
            elif more:
                self.host.give(-more)
        except NoRoomError as error:
            self._arriving -= more
            raise self._refusal(Command.GRAPH_COMPUTE, error) from error

    # ---- small questions

    def _hello(self, _request: Record) -> list[Piece]:
        self.greeted = True
        major, minor, patch = self.protocol.version
        return [pack(HELLO_REPLY, major=major, minor=minor, patch=patch)]

    def _device_count(self, _request: Record) -> list[Piece]:
        return [self.answer(Command.DEVICE_COUNT, device_count=len(self.server.devices))]

    def _get_alignment(self, request: Record) -> list[Piece]:
        return [self.answer(Command.GET_ALIGNMENT, alignment=self.served_for(request).device.alignment)]

    def _get_max_size(self, request: Record) -> list[Piece]:
        return [self.answer(Command.GET_MAX_SIZE, max_size=self.served_for(request).device.max_size)]

    def _get_device_memory(self, request: Record) -> list[Piece]:
        served = self.served_for(request)
        # of a lost device none is free; 0 of 0 would mean that it does not tell, as clients read it
        free, total = self.account(served).offer() if served.lost is None else served.memory()
        return [self.answer(Command.GET_DEVICE_MEMORY, free=free, total=total)]

    def _get_alloc_size(self, request: Record) -> list[Piece]:
        """From shapes alone: buffers in these records may be anybody's."""
        served = self.served_for(request)
        (tensor,) = read_tensors(request["tensor"], None)
        sources = request["srcs"][0]
        present = np.flatnonzero(sources["id"])
        src: list[Tensor | None] = [None] * (int(present.max(initial=-1)) + 1)
        for i, source in zip(present.tolist(), read_tensors(sources[present], None), strict=True):
            src[i] = source
        tensor.src = tuple(src)
        size = served.device.alloc_size(tensor)
        if size >= 1 << 64:
            raise RefusedError(f"tensor {tensor.name!r}: {size} bytes")
        return [self.answer(Command.GET_ALLOC_SIZE, alloc_size=size)]

    # ---- graphs, and sums over two servers

    def _graph_recompute(self, request: Record) -> None:
        self.graphs.recompute(self.served_for(request), request)

    def _comm_init(self, request: Record) -> list[Piece]:
        return [self.answer(Command.COMM_INIT, ok=self._comm.join(request))]

    def _comm_allreduce(self, request: Record) -> None:
        tensor, served = self.tensors.tensor(request["tensor"]), self.served_for(request)
        assert tensor.buffer is not None
        if tensor.buffer.device is not served.device:
            raise RefusedError(f"tensor {tensor.name!r} is in memory of another device")
        self._comm.allreduce(int(request["device"][0]), tensor, self.stage)
        self.unstage()

    def _comm_free(self, request: Record) -> None:
        self.served_for(request)
        self._comm.leave(int(request["device"][0]))
