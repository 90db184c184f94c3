"""Computations go on while the next commands are read: what is answered meanwhile, what waits, and how a failure shows."""

import inspect
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from mutants import Mutant, assert_caught
from pyggml_rpc.errors import RefusedError
from pyggml_rpc.running import Running, _Worker
from pyggml_rpc.server import Server
from pyggml_rpc.wire import NEWEST, WAITS, Command

C = Command


@pytest.fixture
def working(kit: Any, toy: Any) -> Iterator[tuple[Any, Any]]:
    """A client with memory of two devices, whose first computes c = a + b until `toy.gate` is opened."""
    client = kit.Glued(Server([toy, kit.ToyDevice()]))
    client.alloc(64, device=1)
    c = kit.sum_of(client)
    client.set(c.records[0], np.full(4, 1, "<f4").tobytes())
    client.set(c.records[1], np.full(4, 2, "<f4").tobytes())
    toy.gate.clear()
    client.ask(C.GRAPH_COMPUTE, kit.graph_body([3], c.records))
    assert toy.entered.wait(5) and client.session.busy
    yield client, c
    toy.gate.set()
    client.session.close()
    assert not client.session.busy


def test_what_is_answered_meanwhile(kit: Any, toy: Any, working: tuple[Any, Any]) -> None:
    client, _ = working
    handle = int(client.request(C.ALLOC_BUFFER, size=64)["remote_ptr"])
    assert client.request(C.BUFFER_GET_BASE, remote_ptr=handle)["base_ptr"]
    assert client.request(C.DEVICE_COUNT)["device_count"] == 2
    for command in (C.GET_ALIGNMENT, C.GET_MAX_SIZE, C.GET_DEVICE_MEMORY):
        client.request(command)
    assert client.request(C.GET_ALLOC_SIZE, tensor=kit.record((4,)))["alloc_size"] == 16
    second = kit.sum_of(client, device=1)
    client.ask(C.GRAPH_COMPUTE, kit.graph_body([3], second.records, device=1))
    assert toy.inside == 1 and toy.computed == 0


def blocked(call: Callable[[], Any], toy: Any) -> Any:
    """What `call` gives, which must not come before the gate is opened."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(call()))
    thread.start()
    time.sleep(0.05)
    assert not results and toy.computed == 0
    toy.gate.set()
    thread.join(10)
    return results[0]


def what_waits(kit: Any, client: Any, c: Any) -> dict[Command, Callable[[], Any]]:
    a, out = c.records[0], c.records[2]
    where = {"size": 16, "n_copies": 1}
    return {
        C.GET_TENSOR: lambda: client.get(out, 16),
        C.GET_TENSOR_2D: lambda: client.ask(
            C.GET_TENSOR_2D, NEWEST.pack(C.GET_TENSOR_2D, tensor=out, **where), into=bytearray(16)
        ),
        C.SET_TENSOR: lambda: client.set(a, bytes(16)),
        C.SET_TENSOR_2D: lambda: client.ask(
            C.SET_TENSOR_2D, NEWEST.pack(C.SET_TENSOR_2D, tensor=a, **where), bytes(16)
        ),
        C.SET_TENSOR_HASH: lambda: client.request(C.SET_TENSOR_HASH, tensor=a),
        C.MEMSET_TENSOR: lambda: client.request(C.MEMSET_TENSOR, tensor=a, size=4),
        C.COPY_TENSOR: lambda: client.request(C.COPY_TENSOR, src=a, dst=out),
        C.BUFFER_CLEAR: lambda: client.request(C.BUFFER_CLEAR, remote_ptr=c.handle),
        C.FREE_BUFFER: lambda: client.request(C.FREE_BUFFER, remote_ptr=c.handle),
        C.INIT_TENSOR: lambda: client.request(C.INIT_TENSOR, tensor=a),
        C.GRAPH_RECOMPUTE: lambda: client.recompute(),
        C.GRAPH_COMPUTE: lambda: client.ask(C.GRAPH_COMPUTE, kit.graph_body([3], c.records)),
    }


@pytest.mark.parametrize(
    "command", [*sorted(WAITS - {C.COMM_ALLREDUCE}), C.GRAPH_RECOMPUTE, C.GRAPH_COMPUTE], ids=lambda c: c.name
)
def test_what_waits(kit: Any, toy: Any, working: tuple[Any, Any], command: Command) -> None:
    client, c = working
    blocked(what_waits(kit, client, c)[command], toy)
    assert toy.computed >= 1 and toy.most_inside == 1


def test_the_result_is_there_when_it_is_read(toy: Any, working: tuple[Any, Any]) -> None:
    client, c = working
    assert np.frombuffer(blocked(lambda: client.get(c.records[2], 16), toy), "<f4").tolist() == [3] * 4


@pytest.mark.parametrize("wait", [True, False], ids=["a command that waits", "one that does not"])
def test_a_failure_shows_at_the_next_command(kit: Any, working: tuple[Any, Any], toy: Any, wait: bool) -> None:
    client, c = working
    for served in client.session.server.devices:
        served.abort(client.session)
    if not wait:
        end = time.monotonic() + 5
        while client.session.busy and time.monotonic() < end:
            time.sleep(0.005)
    with pytest.raises(RefusedError, match=r"^GRAPH_COMPUTE: aborted$"):
        client.get(c.records[2], 16) if wait else client.request(C.DEVICE_COUNT)
    assert client.session.server.counters.refused == 1


def test_closing_ends_the_computation_before_its_memory_goes(toy: Any, working: tuple[Any, Any]) -> None:
    client, _ = working
    client.session.close()
    assert toy.inside == 0 and toy.computed == 0 and client.session.server.devices[0].used == 0


def test_who_can_compute_on_one_device_only_computes_by_itself(kit: Any, toy: Any) -> None:
    """To wake a thread and hear back takes longer than a small graph."""
    client = kit.Glued(Server([toy, kit.ToyDevice()]))
    c = kit.sum_of(client)
    there = set(threading.enumerate())  # others may end meanwhile, such as those of tests before
    assert c.run(client) == kit.SUM and not set(threading.enumerate()) - there
    second = kit.sum_of(client, device=1)
    assert c.run(client) == kit.SUM and len(set(threading.enumerate()) - there) == 1
    client.request(C.FREE_BUFFER, remote_ptr=second.handle)
    assert client.session.buffers.only_on(0) and not client.session.buffers.only_on(1)
    client.session.close()


def test_a_failure_of_ones_own_computation_shows_at_once(kit: Any, toy: Any) -> None:
    client = kit.Glued(Server([toy]))
    c = kit.sum_of(client)
    toy.gate.clear()
    results: list[Any] = []

    def compute() -> None:
        with pytest.raises(RefusedError, match=r"^GRAPH_COMPUTE: aborted$"):
            client.ask(C.GRAPH_COMPUTE, kit.graph_body([3], c.records))
        results.append(client.session.busy)

    thread = threading.Thread(target=compute)
    thread.start()
    assert toy.entered.wait(5) and client.session.busy
    client.session.server.devices[0].abort(client.session)
    thread.join(10)
    assert results == [False] and client.session.server.counters.refused == 1


def test_a_client_that_nobody_watches_is_read_while_it_computes(kit: Any, toy: Any) -> None:
    """Or nobody would learn that it has left."""
    client = kit.Glued(Server([toy]))
    client.session.running = Running("client", watched=False)
    c = kit.sum_of(client)
    toy.gate.clear()
    threading.Timer(5, toy.gate.set).start()  # should it not come back
    client.ask(C.GRAPH_COMPUTE, kit.graph_body([3], c.records))
    assert toy.entered.wait(5) and client.session.busy
    assert client.request(C.DEVICE_COUNT)["device_count"] == 1
    toy.gate.set()
    client.session.close()


# ---- wrong variants


def waits(command: Command) -> Callable[..., None]:
    def test(kit: Any, toy: Any, working: tuple[Any, Any]) -> None:
        test_what_waits(kit, toy, working, command)

    return test


def shows(wait: bool) -> Callable[..., None]:
    def test(kit: Any, working: tuple[Any, Any], toy: Any) -> None:
        test_a_failure_shows_at_the_next_command(kit, working, toy, wait)

    return test


START, WAIT = (Running, "start"), (Running, "wait")
ALONE = test_who_can_compute_on_one_device_only_computes_by_itself
MUTANTS: dict[str, tuple[Mutant, Callable[..., Any]]] = {
    "nobody waits": ((*WAIT, "worker.idle.wait()", "pass"), waits(C.SET_TENSOR)),
    "only graphs wait": ((*WAIT, "device is None or number == device", "number == device"), waits(C.GET_TENSOR)),
    "graphs do not": ((*WAIT, "device is None or number == device", "device is None"), waits(C.GRAPH_COMPUTE)),
    "it is idle when it was handed over": ((_Worker, "start", "self.idle.clear()", "pass"), waits(C.GET_TENSOR)),
    "a failure is lost": ((_Worker, "check", "failure is not None", "False"), shows(True)),
    "a failure is asked for by nobody": ((Running, "check", "worker.check()", "pass"), shows(False)),
    "closing does not wait": (
        (Running, "close", "while not worker.idle.wait(AGAIN):", "while False:"),
        test_closing_ends_the_computation_before_its_memory_goes,
    ),
    "everything is handed over": ((*START, "alone and self._watched", "False"), ALONE),
    "nothing is": ((*START, "alone and self._watched", "True"), ALONE),
    "nobody is watched": (
        (*START, " and self._watched", ""),
        test_a_client_that_nobody_watches_is_read_while_it_computes,
    ),
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_are_caught(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, mutant: str) -> None:
    wrong, test = MUTANTS[mutant]

    def with_all() -> None:
        names = inspect.signature(test).parameters
        test(**{name: request.getfixturevalue(name) for name in names})

    assert_caught(monkeypatch, wrong, with_all)
