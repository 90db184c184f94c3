"""A client's graphs: taken from the wire, proved, lowered, and kept to be computed again.

Owns what is kept and what it counts for; it must not know how a request travelled. Lowering is Python's work for the most
part: clients take turns at it, other threads get the interpreter in between, and it ends when its client has left.
"""

import logging
import time
from typing import TYPE_CHECKING, NamedTuple

from pyggml.backend.base import Plan
from pyggml.errors import ComputeError
from pyggml.ops import Op, check
from pyggml_rpc.errors import RefusedError
from pyggml_rpc.records import ForeignGraph, link, read_tensors

if TYPE_CHECKING:
    from pyggml_rpc.server import Slot
    from pyggml_rpc.session import Session

log = logging.getLogger("pyggml.rpc")

# What objects cost beside the bytes that they stand for, measured by tests/rpc/test_memory.py
READING = 6  # bytes for each byte of a graph while it is taken apart and lowered
RECORD_COST = 3072  # bytes of a tensor that a stored graph keeps

AT_ONCE = 256  # tensors or nodes that are looked at before it is asked whether their client is still there
YIELD_AFTER = 0.001  # seconds of lowering after which others get
YIELD = 0.00005  # seconds in which to take the interpreter


class Stored(NamedTuple):
    """A graph that can be computed again: what it touches, and what it costs in the host's and the device's memory."""

    plan: Plan
    handles: frozenset[int]
    objects: int
    memory: int


class Graphs:
    """One client's: the last of each device."""

    def __init__(self, session: "Session") -> None:
        self._session = session
        self._stored: dict[int, Stored] = {}
        self._yielded = 0.0

    def compute(self, slot: "Slot", foreign: ForeignGraph) -> None:
        """Take a graph and run it. Raises RefusedError, ComputeError and what else keeps it from being computed."""
        session = self._session
        self._forget(foreign.device)
        reading = READING * (foreign.records.nbytes + 8 * len(foreign.nodes))
        session.host.take(reading)
        try:
            session.server.lowering.take(session.owner, lambda: session.gone)
            try:
                stored = self._lowered(slot, foreign)
            finally:
                session.server.lowering.give(session.owner)
        finally:
            session.host.give(reading)
        self._stored[foreign.device] = stored
        log.debug("%s: a graph of %d nodes for %s", session.peer, len(foreign.nodes), slot.device.name)
        self._run(slot, stored.plan)

    def recompute(self, slot: "Slot", device: int) -> None:
        stored = self._stored.get(device)
        if stored is None:
            raise RefusedError(f"no graph is stored for device {device}")
        self._run(slot, stored.plan)

    def forget_those_with(self, handle: int) -> None:
        """A buffer is freed. Graphs that do not touch it stay: stock clients recompute them."""
        for device in [device for device, stored in self._stored.items() if handle in stored.handles]:
            self._forget(device)

    def clear(self) -> None:
        for device in list(self._stored):
            self._forget(device)

    def _run(self, slot: "Slot", plan: Plan) -> None:
        self._session.figures.graphs += 1
        slot.compute(plan, self._session)

    def _forget(self, device: int) -> None:
        """Give up the graph that is stored for a device, if there is one."""
        stored = self._stored.pop(device, None)
        if stored is None:
            return
        objects, memory = stored.objects, stored.memory
        del stored
        self._session.host.give(objects)
        self._session.account(self._session.server.slots[device]).give(memory)

    def _lowered(self, slot: "Slot", foreign: ForeignGraph) -> Stored:
        """Check every node, and make the graph ready to run. Raises RefusedError and what the backend does."""
        session = self._session
        self._yielded = time.monotonic()
        tensors = []
        for first in range(0, len(foreign.records), AT_ONCE):
            self._stay()
            tensors += read_tensors(foreign.records[first : first + AT_ONCE], session.lent)
        graph = link(foreign, tensors)
        for number, node in enumerate(graph.nodes):
            if not number % AT_ONCE:
                self._stay()
            check(node)
            for tensor in (node, *node.src):
                if tensor is not None and tensor.buffer is not None and tensor.buffer.device is not slot.device:
                    raise RefusedError(f"node {node.name!r}: {tensor.name!r} is in memory of another device")
            reason = slot.device.why_not(node)
            if reason is not None:
                raise RefusedError(f"node {node.name!r} ({Op(node.op).name}): {reason}")
        objects = RECORD_COST * len(tensors)
        session.host.take(objects)
        try:
            room, known = session.account(slot).offer()
            plan = slot.backend.plan(graph, cancelled=self._left, max_work=room if known else None)
            session.account(slot).take(plan.nbytes)
        except BaseException:
            session.host.give(objects)
            raise
        buffers = {id(t.buffer) for node in graph.nodes for t in (node, *node.src) if t is not None}
        used = frozenset(handle for handle, lent in session.lent.items() if id(lent.buffer) in buffers)
        return Stored(plan, used, objects, plan.nbytes)

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
        return self._session.gone
