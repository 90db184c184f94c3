"""Several clients at one server, in any order of anything: each finds what it wrote, memory returns, no thread stays."""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule, run_state_machine_as_test
from pyggml_rpc.buffers import Buffers
from pyggml_rpc.errors import RefusedError, RemoteProtocolError
from pyggml_rpc.memory import Account, Ledger
from pyggml_rpc.server import Server
from pyggml_rpc.transport import Limits, Listener
from pyggml_rpc.wire import NEWEST, Command, pack_header

from pyggml.backend.cpu import CPUDevice
from pyggml.backend.host import HostBuffer
from pyggml.ops import Op

C = Command
LIMIT = 1 << 20
CALM = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@dataclass
class Owned:
    """What a client has: its buffers' bytes as it expects them, and the graph that it could compute again."""

    client: Any
    buffers: dict[int, tuple[int, np.ndarray]] = field(default_factory=dict)  # handle -> base, bytes
    graph: int | None = None  # the handle of the buffer that it is in
    had_graph: bool = False
    alive: bool = True


class Clients(RuleBasedStateMachine):
    """Glued to one server without sockets: every step is whole before the next one."""

    kit: Any
    owners = Bundle("owners")

    def __init__(self) -> None:
        super().__init__()
        self.server = Server([CPUDevice()], n_threads=2, memory_limit=LIMIT)
        self.all: list[Owned] = []

    @rule(target=owners)
    def come(self) -> Any:
        if len(self.all) > 12:
            return multiple()
        self.all.append(Owned(self.kit.Glued(self.server)))
        return self.all[-1]

    @rule(owner=owners, rarely=st.integers(0, 4))
    def leave(self, owner: Owned, rarely: int) -> None:
        if owner.alive and not rarely:
            self._end(owner)

    def _end(self, owner: Owned) -> None:
        session = owner.client.session
        session.close()
        assert not session.buffers.by_handle and all(account.held == 0 for account in session._accounts.values())
        owner.alive = False

    @rule(owner=owners, size=st.one_of(st.integers(0, 4096), st.integers(0, 2 * LIMIT)))
    def alloc(self, owner: Owned, size: int) -> None:
        if not owner.alive:
            return
        room = owner.client.offer()
        reply = owner.client.request(C.ALLOC_BUFFER, device=0, size=size)
        assert bool(reply["remote_ptr"]) == (size <= room)
        if handle := int(reply["remote_ptr"]):
            base = int(owner.client.request(C.BUFFER_GET_BASE, remote_ptr=handle)["base_ptr"])
            owner.buffers[handle] = base, np.zeros(size, np.uint8)

    def _chosen(self, owner: Owned, which: int, at_least: int = 64) -> int | None:
        fit = [h for h, (_, content) in owner.buffers.items() if content.size >= at_least]
        return fit[which % len(fit)] if owner.alive and fit else None

    def _tensor(self, owner: Owned, handle: int, at: int, n: int, **more: Any) -> Any:
        return self.kit.record((n,), buffer=handle, data=owner.buffers[handle][0] + at, **more)

    @rule(owner=owners, which=st.integers(0, 9), seed=st.integers(0, 999))
    def write(self, owner: Owned, which: int, seed: int) -> None:
        handle = self._chosen(owner, which)
        if handle is not None:
            content = owner.buffers[handle][1]
            at = 4 * (seed % (content.size // 4 - 4))
            data = np.random.default_rng(seed).standard_normal(4).astype("<f4")
            owner.client.set(self._tensor(owner, handle, at, 4), data.tobytes())
            content[at : at + 16] = data.view(np.uint8)

    @rule(owner=owners, which=st.integers(0, 9), value=st.integers(0, 255))
    def fill(self, owner: Owned, which: int, value: int) -> None:
        handle = self._chosen(owner, which, 0)
        if handle is not None:
            owner.client.request(C.BUFFER_CLEAR, remote_ptr=handle, value=value)
            owner.buffers[handle][1][:] = value

    @rule(owner=owners, which=st.integers(0, 9))
    def free(self, owner: Owned, which: int) -> None:
        handle = self._chosen(owner, which, 0)
        if handle is not None:
            owner.client.request(C.FREE_BUFFER, remote_ptr=handle)
            del owner.buffers[handle]
            if owner.graph == handle:
                owner.graph = None

    @rule(owner=owners, which=st.integers(0, 9))
    def compute(self, owner: Owned, which: int) -> None:
        """The values at 32 become the sum of those at 0 and 16."""
        handle = self._chosen(owner, which)
        if handle is None:
            return
        a, b = (self._tensor(owner, handle, 16 * i, 4, id=i + 1) for i in (0, 1))
        out = self._tensor(owner, handle, 32, 4, id=3, op=Op.ADD, flags=16, src=[1, 2, *[0] * 8])
        body = self.kit.graph_body([3], [a, b, out])
        if owner.client.offer() < 100_000:
            with contextlib.suppress(RefusedError):  # there may be room or not: if it computes, it computes rightly
                owner.client.compute_body(body)
                self._added(owner, handle)
                return
            self._end(owner)
            return
        owner.client.compute_body(body)
        self._added(owner, handle)

    def _added(self, owner: Owned, handle: int) -> None:
        values = owner.buffers[handle][1][:48].view("<f4")
        with np.errstate(all="ignore"):
            values[8:] = values[:4] + values[4:8]
        owner.graph, owner.had_graph = handle, True

    @rule(owner=owners)
    def compute_again(self, owner: Owned) -> None:
        if not owner.alive:
            return
        if owner.graph is None:
            if not owner.had_graph:
                return
            with pytest.raises(RefusedError, match="no graph"):
                owner.client.request(C.GRAPH_RECOMPUTE, device=0, uid=1)
            self._end(owner)
            return
        owner.client.request(C.GRAPH_RECOMPUTE, device=0, uid=1)
        self._added(owner, owner.graph)

    @rule(owner=owners, other=owners, which=st.integers(0, 39))
    def steal(self, owner: Owned, other: Owned, which: int) -> None:
        """Another client's handle is no handle. Now and then: it costs a client."""
        handle = self._chosen(other, which, 0)
        if handle is not None and owner.alive and owner is not other and which < 10:
            with pytest.raises(RefusedError):
                owner.client.request(C.BUFFER_CLEAR, remote_ptr=handle, value=66)
            self._end(owner)

    @rule(owner=owners, cut=st.integers(1, 1500), size=st.integers(12, 1 << 26))
    def hang_up_in_a_frame(self, owner: Owned, cut: int, size: int) -> None:
        if owner.alive and cut <= 300:
            with contextlib.suppress(RefusedError, RemoteProtocolError):
                owner.client.send((pack_header(C.GRAPH_COMPUTE, size) + bytes(300))[:cut])
            self._end(owner)

    @invariant()
    def nobody_sees_what_others_did(self) -> None:
        for owner in self.all:
            for handle, (_, content) in owner.buffers.items() if owner.alive else ():
                n = min(content.size // 4, 64)
                if n:
                    got = owner.client.get(self._tensor(owner, handle, 0, n), 4 * n)
                    assert got == content[: 4 * n].tobytes()

    @invariant()
    def the_limit_holds(self) -> None:
        lent = sum(content.size for owner in self.all if owner.alive for _, content in owner.buffers.values())
        assert lent <= self.server.devices[0].used <= LIMIT
        assert self.server._buffers == sum(len(owner.buffers) for owner in self.all if owner.alive)

    def teardown(self) -> None:
        for owner in self.all:
            if owner.alive:
                self._end(owner)
        assert self.server.devices[0].used == 0 and self.server._buffers == 0
        self.server.close()


def test_clients_in_any_order(kit: Any) -> None:
    class Bound(Clients):
        pass

    Bound.kit = kit
    run_state_machine_as_test(Bound, settings=CALM)


def _shared_handles(patch: pytest.MonkeyPatch) -> None:
    everybodys: dict[int, Any] = {}
    made = Buffers.__init__

    def init(self: Buffers, *args: Any) -> None:
        made(self, *args)
        self.by_handle = everybodys

    patch.setattr(Buffers, "__init__", init)


def _dirty_memory(patch: pytest.MonkeyPatch) -> None:
    alloc = CPUDevice.alloc_buffer

    def dirty(self: CPUDevice, *args: Any) -> HostBuffer:
        buffer = alloc(self, *args)
        buffer.memory[:] = 1
        return buffer

    patch.setattr(CPUDevice, "alloc_buffer", dirty)


MUTANTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "no limit": lambda patch: patch.setattr(Ledger, "_room", lambda *args: 1 << 40),
    "memory stays": lambda patch: patch.setattr(Account, "close", lambda self: None),
    "graphs cost nothing": lambda patch: patch.setattr(Account, "give", lambda self, size: None),
    "one table of handles": _shared_handles,
    "memory is not cleared": _dirty_memory,
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_wrong_server_is_found(kit: Any, mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Bound(Clients):
        pass

    Bound.kit = kit
    MUTANTS[mutant](monkeypatch)
    with pytest.raises(BaseException):  # noqa: B017 - whatever it fails with
        run_state_machine_as_test(
            Bound, settings=settings(CALM, max_examples=300, phases=[Phase.generate], database=None)
        )


class Connections(RuleBasedStateMachine):
    """Over sockets: clients that greet, work, stall in the middle of frames, hang up in several ways; one works on."""

    kit: Any
    socks = Bundle("socks")

    def __init__(self) -> None:
        super().__init__()
        self.threads = set(threading.enumerate())
        self.server = Server([self.kit.ToyDevice()], memory_limit=LIMIT)
        self.listener = Listener(self.server, port=0, limits=Limits(max_clients=6))
        self.open: list[socket.socket] = []
        self.steady = self._greeted()
        assert self.steady.fileno() >= 0

    def _greeted(self) -> socket.socket:
        """Closed when it was turned away."""
        sock = socket.create_connection(self.listener.address, 5)
        sock.settimeout(5)
        with contextlib.suppress(OSError):
            sock.sendall(pack_header(C.HELLO, 24) + bytes(24))
            if len(sock.recv(36, socket.MSG_WAITALL)) == 36:
                return sock
        sock.close()
        return sock

    @rule(target=socks)
    def greet(self) -> socket.socket:
        """Also one that was turned away: what is drawn next must not depend on when that happens."""
        self.open.append(self._greeted())
        return self.open[-1]

    @rule(target=socks, n=st.integers(0, 20))
    def stammer(self, n: int) -> socket.socket:
        sock = socket.create_connection(self.listener.address, 5)
        with contextlib.suppress(OSError):
            sock.sendall((pack_header(C.HELLO, 24) + bytes(24))[:n])
        self.open.append(sock)
        return sock

    @rule(sock=socks, size=st.integers(0, LIMIT))
    def alloc(self, sock: socket.socket, size: int) -> None:
        body = NEWEST.pack(C.ALLOC_BUFFER, device=0, size=size)
        with contextlib.suppress(OSError):
            sock.sendall(pack_header(C.ALLOC_BUFFER, 12) + body)

    @rule(sock=socks, data=st.binary(max_size=60))
    def babble(self, sock: socket.socket, data: bytes) -> None:
        with contextlib.suppress(OSError):
            sock.sendall(data)

    @rule(sock=socks, size=st.integers(12, 1 << 26), sent=st.integers(0, 100_000))
    def half_a_graph(self, sock: socket.socket, size: int, sent: int) -> None:
        with contextlib.suppress(OSError):
            sock.sendall(pack_header(C.GRAPH_COMPUTE, size) + bytes(min(sent, size)))

    @rule(sock=socks, how=st.sampled_from(["fin", "rst", "half"]))
    def hang_up(self, sock: socket.socket, how: str) -> None:
        with contextlib.suppress(OSError):
            if how == "rst":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if how == "half":
                sock.shutdown(socket.SHUT_WR)
                return
        sock.close()

    @invariant()
    def the_steady_one_is_served(self) -> None:
        self.steady.sendall(pack_header(C.DEVICE_COUNT, 0))
        assert self.steady.recv(12, socket.MSG_WAITALL) == (4).to_bytes(8, "little") + (1).to_bytes(4, "little")
        assert self.server.devices[0].used <= LIMIT

    def teardown(self) -> None:
        for sock in self.open:
            sock.close()
        end = time.monotonic() + 10
        while self.listener.n_clients > 1 or self.server.devices[0].used:  # some may still wait to be accepted
            assert time.monotonic() < end, "somebody stays"
            time.sleep(0.005)
        self.steady.close()
        self.listener.close()
        assert self.server.devices[0].used == 0 and self.server._buffers == 0
        end = time.monotonic() + 10
        while not set(threading.enumerate()) <= self.threads:  # one may have said good-bye and not ended yet
            assert time.monotonic() < end, "a thread stays"
            time.sleep(0.005)


def test_connections_in_any_order(kit: Any) -> None:
    class Bound(Connections):
        pass

    Bound.kit = kit
    run_state_machine_as_test(Bound, settings=settings(CALM, max_examples=25, stateful_step_count=25))
