"""What the parts of one client's session share: the server, who the client is, and its accounts of memory.

Buffers, tensors, graphs and communicators are each given it.
"""

import time
from collections.abc import Hashable
from dataclasses import dataclass, field

from pyggml_rpc.errors import RefusedError
from pyggml_rpc.logs import mib
from pyggml_rpc.memory import Account
from pyggml_rpc.running import Running
from pyggml_rpc.served import ServedDevice
from pyggml_rpc.server import Server
from pyggml_rpc.wire import Command, Record, pack


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


class ClientState:
    """One client's. `owner`: connections with one owner have one share of memory, and take turns as one.
    `watched`: somebody calls `abort` when the client leaves."""

    def __init__(self, server: Server, peer: str, owner: Hashable, *, watched: bool) -> None:
        self.server = server
        self.protocol = server.protocol
        self.peer = peer
        self.owner = object() if owner is None else owner
        self.address = "of this machine" if owner is None else str(owner)
        self.gone = False  # nobody waits for results any more
        self.running = Running(peer, watched)
        self.figures = Figures()
        ledgers = {id(ledger): ledger for ledger in (server.host, *(served.ledger for served in server.devices))}
        self._accounts = {key: Account(ledger, self.owner) for key, ledger in ledgers.items()}
        self.host = self._accounts[id(server.host)]
        self._staged = 0  # bytes of a tensor on its way to or from a device's memory

    def answer(self, command: Command, **fields: int) -> bytes:
        """The reply with these fields, packed."""
        layout = self.protocol[command].reply
        assert layout is not None
        return pack(layout, **fields)

    def served_for(self, request: Record) -> ServedDevice:
        """The device that a request names. Raises RefusedError."""
        return self.served(int(request["device"][0]))

    def served(self, device: int) -> ServedDevice:
        """Raises RefusedError."""
        if device >= len(self.server.devices):
            raise RefusedError(f"device {device} of {len(self.server.devices)}")
        return self.server.devices[device]

    def account(self, served: ServedDevice) -> Account:
        """What this client holds of the memory of a device."""
        return self._accounts[id(served.ledger)]

    def stage(self, size: int) -> None:
        """Count what passes through this machine's memory, until `unstage`. Raises NoRoomError."""
        self.unstage()
        self.host.take(size)
        self._staged = size

    def unstage(self) -> None:
        """What passed through is gone."""
        if self._staged:
            self.host.give(self._staged)
            self._staged = 0
