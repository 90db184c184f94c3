"""A device that a server offers: whose turn it is, on which of its backends, and how much of its memory is taken."""

import logging
import threading
import time
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from pyggml.backend.base import Backend, Device, Kind, Plan
from pyggml.errors import ComputeError
from pyggml_rpc.memory import Ledger
from pyggml_rpc.turns import Turns

log = logging.getLogger("pyggml.rpc")

CLOSE_TIMEOUT = 2.0  # seconds
PATIENCE = 1.0  # seconds that others wait for one client's graph before they compute beside it
MAX_BACKENDS = 16  # of a device

Elsewhere = Callable[[Backend], AbstractContextManager[Plan]]
"""A graph made ready for a backend, for as long as the context lasts."""


class Client(Protocol):
    """Who computes. `owner`: connections with one owner take turns as one; `gone`: nobody waits for results any more."""

    @property
    def owner(self) -> Hashable: ...

    @property
    def gone(self) -> bool: ...


@dataclass
class _Run:
    """A computation, on which of a device's backends, and since when."""

    number: int
    backend: Backend
    since: float
    overdue: bool = False


class ServedDevice:
    """One device of a server: who computes on it, and who holds how much of its memory.

    One client computes at a time. A device whose turn takes long gets another backend for the next client, and nobody waits
    for the end of a graph that may take hours: on a CPU with threads of its own, between which the system shares the cores;
    a GPU takes slices of both graphs by turns.
    """

    def __init__(
        self, device: Device, n_threads: int | None, ledger: Ledger, graph_timeout: float | None = None
    ) -> None:
        self.device = device
        self.ledger = ledger
        several = device.kind is Kind.CPU or device.shares_plans
        self.turns = Turns(overstay=PATIENCE if several else None, most=MAX_BACKENDS)
        self._n_threads = n_threads
        self._graph_timeout = graph_timeout
        self._state = threading.Lock()
        self._told = False  # that it is lost
        self._communicating: Client | None = None
        self._backends: list[Backend] = []
        self._running: dict[Client, _Run] = {}

    @property
    def lost(self) -> str | None:
        """Why it is not offered any more; None = it is. Told in the log once."""
        reason = self.device.lost
        if reason is not None:
            with self._state:
                told, self._told = self._told, True
            if not told:
                log.error("%s is not offered any more: %s", self.device.name, reason)
        return reason

    @property
    def backend(self) -> Backend:
        """The one that graphs are made ready for."""
        with self._state:
            return self._open(0)

    def _open(self, number: int) -> Backend:
        if number == len(self._backends):
            self._backends.append(self.device.open(self._n_threads))
        return self._backends[number]

    def compute(self, plan: Plan, client: Client, elsewhere: Elsewhere) -> None:
        """Run it when it is the client's turn; `elsewhere` makes the plan for another backend than `backend`. Raises
        ComputeError, also when the client left while it waited."""
        self.turns.take(client.owner, lambda: client.gone)
        try:
            run = self._begin(client)
            try:
                if run.number == 0 or self.device.shares_plans:
                    self._run(run, plan)
                else:
                    with elsewhere(run.backend) as other:
                        self._run(run, other)
            finally:
                with self._state:
                    del self._running[client]
        finally:
            self.turns.give(client.owner)

    def _begin(self, client: Client) -> _Run:
        with self._state:
            if client.gone:  # asked inside, where `abort` sees that it runs
                raise ComputeError("the client is gone")
            taken = {run.number for run in self._running.values()}
            number = next(i for i in range(MAX_BACKENDS) if i not in taken)
            run = self._running[client] = _Run(number, self._open(number), time.monotonic())
            return run

    def _run(self, run: _Run, plan: Plan) -> None:
        try:
            run.backend.compute(plan)
            run.backend.synchronize()
        except ComputeError:
            if not run.overdue:
                raise
            raise ComputeError(f"the graph took more than {self._graph_timeout:g} s") from None

    def abort(self, client: Client) -> None:
        """End the computation if it is this client's, and its wait for a turn."""
        with self._state:
            run = self._running.get(client)
            if run is not None:
                run.backend.abort()
        self.turns.wake()

    def end_overdue(self) -> None:
        """End what computes for longer than a graph may; to be called again and again."""
        assert self._graph_timeout is not None
        with self._state:
            for run in self._running.values():
                if time.monotonic() - run.since > self._graph_timeout:
                    run.overdue = True
                    run.backend.abort()

    def reserve(self, client: Client | None) -> bool:
        """Have the device's one communicator be this client's, unless it is another's; None: nobody's any more."""
        with self._state:
            if client is not None and self._communicating is not None:
                return False
            self._communicating = client
            return True

    def trim(self) -> None:
        """After heavy clients: end the backends that nobody needs any more, and empty the first one."""
        with self._state:
            for backend in self._backends:
                backend.trim()
            taken = {run.number for run in self._running.values()}
            while len(self._backends) > 1 and len(self._backends) - 1 not in taken:
                self._backends.pop().close()

    @property
    def used(self) -> int:
        """Bytes that clients hold."""
        return self.ledger.held

    def memory(self) -> tuple[int, int]:
        """Bytes (free, total) on offer, to all clients together."""
        if self.lost is not None:
            return self.device.memory()
        _, total = self.ledger.offer(None)
        return max(0, total - self.ledger.held), total

    def close(self) -> None:
        """A computation that does not end when it is aborted keeps its threads, which end with the process."""
        until = time.monotonic() + CLOSE_TIMEOUT
        while self.turns.n_running and time.monotonic() < until:
            time.sleep(0.01)
        with self._state:
            for backend in self._backends if not self._running else ():
                backend.close()
            self._backends.clear()
