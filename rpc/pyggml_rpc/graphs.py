"""A client's graphs: taken from the wire, proved, lowered, and kept to be computed again.

Owns what is kept and what it counts for. Lowering is Python's work for the most part: clients take turns at it, other
threads get the interpreter in between, and it ends when its client has left.
"""

import contextlib
import hashlib
import logging
import time
from collections.abc import Iterator

from pyggml.backend.base import Backend, Plan
from pyggml.errors import ComputeError
from pyggml.ops import Op, check
from pyggml_rpc.buffers import Buffers
from pyggml_rpc.client_state import ClientState
from pyggml_rpc.connection import Piece, Request
from pyggml_rpc.errors import RefusedError
from pyggml_rpc.kept import Content, KeptGraphs, Lowered
from pyggml_rpc.records import ForeignGraph, link, prune, read_graph, read_tensors
from pyggml_rpc.served import ServedDevice
from pyggml_rpc.wire import Command, Record

log = logging.getLogger("pyggml.rpc")

# What objects cost beside the bytes that they stand for, measured by tests/rpc/test_memory.py
READING = 6  # bytes for each byte of a graph while it is taken apart and lowered
RECORD_COST = 3072  # bytes of a tensor that a graph keeps which is ready to run

AT_ONCE = 256  # tensors or nodes that are looked at before it is asked whether their client is still there
YIELD_AFTER = 0.001  # seconds of lowering after which others get
YIELD = 0.00005  # seconds in which to take the interpreter


class Graphs:
    """One client's."""

    def __init__(self, client: ClientState, buffers: Buffers) -> None:
        self._client = client
        self._buffers = buffers
        self._protocol = client.protocol
        accounts = [client.account(served) for served in client.server.devices]
        self._kept = KeptGraphs(self._protocol.max_graphs, client.host, accounts)
        self._yielded = 0.0

    def compute(self, served: ServedDevice, request: Request) -> None:
        """Take a graph and run it. Raises RefusedError, ComputeError and what else keeps it from being computed."""
        device, uid = int(request.record["device"][0]), self._protocol.uid_in(request.record)
        self._client.running.wait(device)
        self._kept.make_room(device, uid)
        content = _content(request, device)
        plan = self._kept.keep(device, uid, content, request.body, lambda: self._in_turn(served, request.body))
        self._run(served, device, plan, request.body)

    def recompute(self, served: ServedDevice, request: Record) -> None:
        """Run a graph that is kept. Raises the same."""
        device, uid = int(request["device"][0]), self._protocol.uid_in(request)
        self._client.running.wait(device)
        plan = self._kept.plan(device, uid, lambda body: self._in_turn(served, body))
        self._run(served, device, plan, self._kept.body(device, uid))

    def forget_those_with(self, handle: int) -> None:
        """A buffer is freed. Graphs that do not touch it stay: stock clients recompute them."""
        self._kept.buffer_freed(handle)

    def clear(self) -> None:
        self._kept.clear()

    def _run(self, served: ServedDevice, device: int, plan: Plan, body: Piece) -> None:
        """Compute it, or hand it over if another device of this client could compute meanwhile."""
        client = self._client
        client.figures.graphs += 1
        client.running.start(
            device,
            lambda: served.compute(plan, client, lambda backend: self._elsewhere(served, body, backend)),
            alone=self._buffers.only_on(device),
        )

    def _read(self, body: Piece) -> ForeignGraph:
        return read_graph(Request(Command.GRAPH_COMPUTE, body, self._protocol[Command.GRAPH_COMPUTE].request))

    @contextlib.contextmanager
    def _elsewhere(self, served: ServedDevice, body: Piece, backend: Backend) -> Iterator[Plan]:
        """The graph once more, for another backend of its device and for one run."""
        lowered = self._lowered(served, self._read(body), backend)
        try:
            yield lowered.plan
        finally:
            self._client.host.give(lowered.objects)
            self._client.account(served).give(lowered.plan.nbytes)

    def _in_turn(self, served: ServedDevice, body: Piece) -> Lowered:
        client, foreign = self._client, prune(self._read(body))
        reading = READING * (foreign.records.nbytes + 8 * len(foreign.nodes))
        client.host.take(reading)
        try:
            client.server.lowering.take(client.owner, lambda: client.gone)
            try:
                lowered = self._lowered(served, foreign, served.backend)
            finally:
                client.server.lowering.give(client.owner)
        finally:
            client.host.give(reading)
        log.debug("%s: a graph of %d nodes for %s", client.peer, len(foreign.nodes), served.device.name)
        return lowered

    def _lowered(self, served: ServedDevice, foreign: ForeignGraph, backend: Backend) -> Lowered:
        """Check every node, make the graph ready to run there, and take what that costs from the client's accounts. Raises
        RefusedError, NoRoomError and what the backend does."""
        client = self._client
        self._yielded = time.monotonic()
        tensors = []
        for first in range(0, len(foreign.records), AT_ONCE):
            self._stay()
            tensors += read_tensors(foreign.records[first : first + AT_ONCE], self._buffers.by_handle)
        graph = link(foreign, tensors)
        for number, node in enumerate(graph.nodes):
            if not number % AT_ONCE:
                self._stay()
            check(node)
            for tensor in (node, *node.src):
                if tensor is not None and tensor.buffer is not None and tensor.buffer.device is not served.device:
                    raise RefusedError(f"node {node.name!r}: {tensor.name!r} is in memory of another device")
            reason = served.device.why_not(node)
            if reason is not None:
                raise RefusedError(f"node {node.name!r} ({Op(node.op).name}): {reason}")
        graph.proved = True
        objects = RECORD_COST * len(tensors)
        client.host.take(objects)
        try:
            room, known = client.account(served).offer()
            plan = backend.plan(graph, cancelled=self._left, max_work=room if known else None)
            client.account(served).take(plan.nbytes)
        except BaseException:
            client.host.give(objects)
            raise
        buffers = {id(t.buffer) for node in graph.nodes for t in (node, *node.src) if t is not None}
        used = frozenset(handle for handle, one in self._buffers.by_handle.items() if id(one.buffer) in buffers)
        return Lowered(plan, used, objects)

    def _stay(self) -> None:
        """Raises ComputeError when the client has left."""
        if self._left():
            raise ComputeError("the client is gone")

    def _left(self) -> bool:
        """Asked often while a graph is lowered: whether nobody waits for it any more. Lets other threads run meanwhile."""
        now = time.monotonic()
        if now - self._yielded > YIELD_AFTER:
            time.sleep(YIELD)
            self._yielded = time.monotonic()
        return self._client.gone


def _content(request: Request, device: int) -> Content:
    """Of a GRAPH_COMPUTE: all but its uid."""
    digest = hashlib.blake2b(request.record["n_nodes"].tobytes(), digest_size=32)
    digest.update(memoryview(request.body)[request.layout.itemsize :])
    return device, digest.digest()
