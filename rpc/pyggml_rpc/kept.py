"""Graphs that are kept for another run: which of them a server has, as its client knows; and a client's, on the server.

Owns the rule by which both sides count alike (ggml-rpc.cpp: `graph_uids`, `stored_graphs`): a device's set that is full
is emptied before the next graph is kept, and a graph that FREE_BUFFER took still counts.
"""

import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pyggml.backend.base import Plan
from pyggml_rpc.connection import Piece
from pyggml_rpc.errors import RefusedError
from pyggml_rpc.memory import Account, NoRoomError
from pyggml_rpc.wire import Protocol

READY_BYTES = 1 << 28  # of plans beside each device's last; the others are made again when they are asked for
RESTING_BYTES = 1 << 29  # of graphs at rest, three times what 1024 of the largest models take
SPARE, SPARE_BYTES = 4, 1 << 26
"""So many plans, and bytes of them, wait for their graph to be sent once more after its uid got another one."""


class SentGraphs:
    """What one server can compute again, by device and uid. `number` is a graph's own, never 0."""

    def __init__(self, protocol: Protocol) -> None:
        self.protocol = protocol
        self._numbers: dict[int, dict[int, int]] = {}

    def has(self, device: int, number: int) -> bool:
        """Whether a device of the server has this graph."""
        return self._numbers.get(device, {}).get(self.protocol.uid(number)) == number

    def add(self, device: int, number: int) -> None:
        """It is sent whole now."""
        of_device = self._numbers.setdefault(device, {})
        if len(of_device) >= self.protocol.max_graphs:
            of_device.clear()
        of_device[self.protocol.uid(number)] = number

    def buffer_freed(self) -> None:
        """A stock server then forgets what it has computed, but goes on counting it."""
        for of_device in self._numbers.values():
            for uid in of_device:
                of_device[uid] = 0

    def clear(self) -> None:
        """The server has none."""
        self._numbers.clear()


Content = tuple[int, bytes]
"""What tells graphs apart that were sent under one uid after another: device, and a digest of all behind it and the uid."""


class Lowered(NamedTuple):
    """A graph ready to run; the buffers that it touches; and what its objects take of the host's memory."""

    plan: Plan
    handles: frozenset[int]
    objects: int


@dataclass
class Kept:
    """One graph. At rest `plan` is None and `body`, its request, is compressed."""

    content: Content
    body: Piece
    plan: Plan | None
    handles: frozenset[int]
    objects: int

    @property
    def host(self) -> int:
        """Bytes of this machine's memory."""
        return len(self.body) + (self.objects if self.plan is not None else 0)

    @property
    def work(self) -> int:
        """Bytes of the device's memory."""
        return 0 if self.plan is None else self.plan.nbytes


class KeptGraphs:
    """Those of one connection, which pays for them from its accounts: `host`, and one for each device.

    None in place of one says that a buffer which it touched was freed, or that it was refused: it counts. A graph of uid
    0 is here until the next one of its device, does not count, and cannot be asked for. Plans whose uid got another graph
    are spare: clients that send two graphs by turns, as those of 7.0.0 do, find them lowered.
    """

    def __init__(self, max_graphs: int, host: Account, devices: Sequence[Account]) -> None:
        self._max_graphs = max_graphs
        self._host = host
        self._devices = devices
        self._of: list[dict[int, Kept | None]] = [{} for _ in devices]  # by device and uid
        self._ready: OrderedDict[tuple[int, int], Kept] = OrderedDict()  # those with plans; what ran last stands last
        self._spare: OrderedDict[Content, Kept] = OrderedDict()  # in the order in which they became that
        self.resting = 0  # bytes

    def make_room(self, device: int, uid: int) -> None:
        """Before a graph is looked at: forget the one of this uid, or all of a full set."""
        of_device = self._of[device]
        if uid and len(of_device) - (0 in of_device) >= self._max_graphs:
            for other in [other for other in of_device if other]:
                self._forget(device, other)
                del of_device[other]
        self._forget(device, uid, spare=True)
        of_device[uid] = None

    def keep(self, device: int, uid: int, content: Content, body: Piece, lower: Callable[[], Lowered]) -> Plan:
        """After `make_room`. `lower`, which is asked where no spare plan has this content, takes what its result costs from
        the accounts; when there is no room it is asked again after all other plans were put to rest. Raises what it does."""
        found = self._spare.pop(content, None)
        if found is not None:
            self._of[device][uid] = self._ready[device, uid] = found
            assert found.plan is not None
            return found.plan
        try:
            lowered = self._paid(body, lower)
        except NoRoomError:
            self._drop_spare(0)
            self._put_away(0)
            lowered = self._paid(body, lower)
        self._of[device][uid] = self._ready[device, uid] = Kept(content, body, *lowered)
        self._put_away(READY_BYTES)
        if self.resting > RESTING_BYTES:
            raise RefusedError(f"{self.resting} bytes of graphs are kept, {RESTING_BYTES} are the most")
        return lowered.plan

    def plan(self, device: int, uid: int, again: Callable[[Piece], Lowered]) -> Plan:
        """The plan of a kept graph; `again` makes it from the body of its request. Raises RefusedError, NoRoomError."""
        kept = self._of[device].get(uid) if uid else None
        if kept is None:
            raise RefusedError(f"no graph is kept for device {device} with uid {uid}")
        if kept.plan is None:
            body, content = zlib.decompress(kept.body), kept.content
            self._forget(device, uid)
            return self.keep(device, uid, content, body, lambda: again(body))
        self._ready.move_to_end((device, uid))
        return kept.plan

    def body(self, device: int, uid: int) -> Piece:
        """The request of a graph whose plan was just asked for."""
        kept = self._of[device][uid]
        assert kept is not None and kept.plan is not None
        return kept.body

    def buffer_freed(self, handle: int) -> None:
        """Forget the graphs that touch it. Others stay: stock clients compute them again."""
        for device, of_device in enumerate(self._of):
            for uid, kept in of_device.items():
                if kept is not None and handle in kept.handles:
                    self._forget(device, uid)
        for content in [content for content, spare in self._spare.items() if handle in spare.handles]:
            self._drop(content)

    def clear(self) -> None:
        self._drop_spare(0)
        for device, of_device in enumerate(self._of):
            for uid in of_device:
                self._forget(device, uid)
            of_device.clear()

    def _paid(self, body: Piece, lower: Callable[[], Lowered]) -> Lowered:
        self._host.take(len(body))
        try:
            return lower()
        except BaseException:
            self._host.give(len(body))
            raise

    def _forget(self, device: int, uid: int, spare: bool = False) -> None:
        """`spare`: its plan may be asked for by its content."""
        kept = self._of[device].get(uid)
        if kept is None:
            return
        self._of[device][uid] = None
        if self._ready.pop((device, uid), None) is None:
            self.resting -= len(kept.body)
        elif spare and kept.content not in self._spare:
            self._spare[kept.content] = kept
            self._drop_spare(SPARE_BYTES)
            return
        self._give(device, kept)

    def _give(self, device: int, kept: Kept) -> None:
        self._host.give(kept.host)
        self._devices[device].give(kept.work)

    def _drop(self, content: Content) -> None:
        self._give(content[0], self._spare.pop(content))

    def _drop_spare(self, most: int) -> None:
        """The oldest, until there are no more than SPARE of no more than `most` bytes."""
        size = sum(kept.host + kept.work for kept in self._spare.values())
        while self._spare and (len(self._spare) > SPARE or size > most):
            content, kept = next(iter(self._spare.items()))
            size -= kept.host + kept.work
            self._drop(content)

    def _put_away(self, most: int) -> None:
        """Put to rest what ran least recently, until no more than `most` bytes are ready; if those are any, beside the
        last of each device."""
        ready = sum(kept.host + kept.work for kept in self._ready.values())
        lasts = dict(self._ready.keys()) if most else {}
        for (device, uid), kept in list(self._ready.items()):
            if ready <= most:
                return
            if lasts.get(device) == uid:
                continue
            host, work, body = kept.host, kept.work, zlib.compress(kept.body, 1)
            if len(body) >= host:  # nothing but noise, and little of it
                continue
            ready -= host + work
            del self._ready[device, uid]
            kept.plan, kept.body = None, body
            self.resting += len(body)
            self._devices[device].give(work)
            self._host.give(host - len(body))
