"""Graphs that are kept by uid: both sides count alike, plans that rest are made again, and bytes have a limit."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from mutants import Mutant, assert_caught
from pyggml_rpc import graphs, kept
from pyggml_rpc.connection import Request
from pyggml_rpc.errors import RefusedError
from pyggml_rpc.graphs import RECORD_COST, Graphs
from pyggml_rpc.kept import KeptGraphs, Lowered, SentGraphs
from pyggml_rpc.memory import Account, Ledger, NoRoomError
from pyggml_rpc.server import Server
from pyggml_rpc.wire import NEWEST, V7, V8, Command

from pyggml.backend.base import Plan

C = Command


@pytest.fixture
def client(toy: Any, kit: Any) -> Any:
    return kit.Glued(Server([toy]))


def test_graphs_by_uid(kit: Any, client: Any, toy: Any) -> None:
    c = kit.sum_of(client)
    double = kit.record(buffer=c.handle, data=c.base + 32, id=4, op=2, flags=16, src=[1, 1, *[0] * 8])
    for i in (0, 1):
        client.set(c.records[i], np.full(4, [3, 4][i], "<f4").tobytes())
    client.compute([3], c.records, uid=5)
    client.compute([4], [*c.records, double], uid=2**64 - 1)
    for uid, value in ((5, 7), (2**64 - 1, 6), (5, 7)):
        client.recompute(uid=uid)
        assert np.frombuffer(client.get(c.records[2], 16), "<f4").tolist() == [value] * 4
    client.compute([4], [*c.records, double], uid=5)  # replaces
    client.recompute(uid=5)
    assert np.frombuffer(client.get(c.records[2], 16), "<f4").tolist() == [6] * 4
    assert toy.computed == 7


@pytest.mark.parametrize("uid", [0, 1, 2**64 - 1])
def test_a_uid_that_is_not_kept(kit: Any, client: Any, uid: int) -> None:
    c = kit.sum_of(client)
    client.compute([3], c.records, uid=0)  # computed, and not kept
    client.compute([3], c.records, uid=7)
    with pytest.raises(RefusedError, match="no graph is kept for device 0"):
        client.recompute(uid=uid)


def test_a_refused_graph_is_not_kept(kit: Any, client: Any) -> None:
    c = kit.sum_of(client)
    client.compute([3], c.records, uid=7)
    with pytest.raises(RefusedError):
        client.compute([99], c.records, uid=7)
    with pytest.raises(RefusedError, match="no graph is kept for device 0 with uid 7"):
        client.recompute(uid=7)


def test_the_1025th_graph_empties_the_set_first(kit: Any, client: Any, toy: Any) -> None:
    c = kit.sum_of(client)
    for uid in range(1, 1025):
        client.compute([3], c.records, uid=uid)
    client.compute([3], c.records, uid=0)
    for uid in (1, 500, 1024):
        client.recompute(uid=uid)
    client.compute([3], c.records, uid=1025)
    client.recompute(uid=1025)
    assert toy.computed == 1024 + 1 + 3 + 2
    with pytest.raises(RefusedError, match="no graph is kept"):
        client.recompute(uid=1024)


def test_a_graph_that_is_not_kept_does_not_count(kit: Any, client: Any) -> None:
    c = kit.sum_of(client)
    for uid in (*range(1, 1024), 0, 1024):
        client.compute([3], c.records, uid=uid)
    client.recompute(uid=1)


def test_a_known_uid_empties_a_full_set_too(kit: Any, client: Any) -> None:
    """As the reference does: it asks for the size before it looks whether the uid is known."""
    c = kit.sum_of(client)
    for uid in (*range(1, 1025), 3):
        client.compute([3], c.records, uid=uid)
    client.recompute(uid=3)
    with pytest.raises(RefusedError, match="no graph is kept"):
        client.recompute(uid=4)


def test_a_uid_comes_back_after_its_buffer_was_freed(kit: Any, client: Any, toy: Any) -> None:
    c, other = kit.sum_of(client), kit.sum_of(client)
    client.compute([3], c.records, uid=1)
    client.compute([3], other.records, uid=2)
    client.request(C.FREE_BUFFER, remote_ptr=c.handle)
    client.recompute(uid=2)
    client.compute([3], other.records, uid=1)
    client.recompute(uid=1)
    assert toy.computed == 5
    client.request(C.FREE_BUFFER, remote_ptr=other.handle)
    with pytest.raises(RefusedError, match="no graph is kept for device 0 with uid 1"):
        client.recompute(uid=1)


def test_what_a_free_took_counts(kit: Any, client: Any) -> None:
    c, other = kit.sum_of(client), kit.sum_of(client)
    for uid in range(1, 1025):
        client.compute([3], c.records if uid <= 1023 else other.records, uid=uid)
    client.request(C.FREE_BUFFER, remote_ptr=c.handle)
    client.recompute(uid=1024)
    client.compute([3], other.records, uid=2000)
    with pytest.raises(RefusedError, match="no graph is kept"):
        client.recompute(uid=1024)


def test_resting_plans_are_made_again(kit: Any, client: Any, toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    c = kit.sum_of(client)
    one = len(kit.graph_body([3], c.records)) + 3 * RECORD_COST
    monkeypatch.setattr(kept, "READY_BYTES", 3 * one)
    made = []
    plan = type(toy.open()).plan
    monkeypatch.setattr(
        type(toy.open()), "plan", lambda self, graph, **more: made.append(1) or plan(self, graph, **more)
    )
    for uid in range(1, 11):
        client.compute([3], c.records, uid=uid)
    for i in (0, 1):
        client.set(c.records[i], np.full(4, [3, 4][i], "<f4").tobytes())
    assert len(made) == 10
    held, resting = client.session.host.held, client.session.graphs._kept.resting
    for uid, n in ((10, 10), (9, 10), (8, 10), (1, 11), (9, 11), (10, 12), (1, 12)):
        client.recompute(uid=uid)
        assert len(made) == n, uid
    assert np.frombuffer(client.get(c.records[2], 16), "<f4").tolist() == [7] * 4
    for before, after in ((held, client.session.host.held), (resting, client.session.graphs._kept.resting)):
        assert abs(after - before) < 64, "compressed sizes differ by a few bytes"
    assert 0 < resting < 7 * one // 20
    client.request(C.FREE_BUFFER, remote_ptr=c.handle)
    assert client.session.graphs._kept.resting == client.session.host.held == 0


class SomePlan(Plan):
    nbytes = 1000


class Some:
    """Graphs in one memory, which is also the devices'."""

    def __init__(self, devices: int = 1, limit: int | None = None) -> None:
        self.account = Account(Ledger(lambda: (1 << 40, 1 << 40), limit=limit, share=1, lazy=False), "one")
        self.kept = KeptGraphs(1024, self.account, [self.account] * devices)
        self.made: list[int] = []

    def keep(self, device: int, uid: int, body: bytes, objects: int = 5000, content: bytes | None = None) -> None:
        self.kept.make_room(device, uid)
        found = device, f"{device} {uid}".encode() if content is None else content
        self.kept.keep(device, uid, found, body, lambda: self.lower(body, objects))

    def plan(self, device: int, uid: int) -> None:
        self.kept.plan(device, uid, self.lower)

    def lower(self, body: Any, objects: int = 5000) -> Lowered:
        self.account.take(objects + SomePlan.nbytes)
        self.made.append(len(body))
        return Lowered(SomePlan(), frozenset({1}), objects)


def test_plans_rest_before_memory_runs_out() -> None:
    """Of 100 graphs that take 7,000 bytes each in 20,000: what a client does not use does not stand in its way."""
    some = Some(limit=20_000)
    for uid in range(1, 101):
        some.keep(0, uid, bytes(1000))
        assert some.account.held <= 20_000
    for uid in (1, 100, 50):
        some.plan(0, uid)
    with pytest.raises(NoRoomError, match="no room for 20000 bytes"):
        some.keep(0, 101, bytes(500), 19_000)
    some.kept.buffer_freed(1)
    assert some.account.held == some.kept.resting == 0


def test_each_devices_last_plan_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "READY_BYTES", 10)
    some = Some(devices=3)
    for uid in (1, 2):
        for device in range(3):
            some.keep(device, uid, bytes(1000))
    some.made.clear()
    for device in (0, 1, 2, 0, 1, 2):
        some.plan(device, 2)
    assert not some.made
    some.plan(1, 1)
    assert some.made == [1000]


def test_graphs_at_rest_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "READY_BYTES", 10)
    monkeypatch.setattr(kept, "RESTING_BYTES", 3000)
    some, noise = Some(), np.random.default_rng(1).bytes
    with pytest.raises(RefusedError, match="bytes of graphs are kept, 3000 are the most"):
        for uid in range(1, 20):
            some.keep(0, uid, noise(200))
    assert 3000 < some.kept.resting < 3300
    some.kept.clear()
    assert some.account.held == some.kept.resting == 0


def test_noise_that_does_not_shrink_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SomePlan, "nbytes", 0)
    some = Some()
    for uid in range(1, 5):
        some.keep(0, uid, b"abcdefgh", 0)
    some.kept._put_away(0)
    some.kept.buffer_freed(1)
    assert some.account.held == some.kept.resting == 0


def test_an_honest_client_does_not_meet_the_limit(kit: Any) -> None:
    """1,024 graphs of 5,000 tensors: a model of 60 layers with experts on one device."""
    records = [
        kit.record((7168, i % 8 + 1), buffer=2**63 + 12345 * (i % 3), data=2**44 + 4096 * i, id=2**46 + 368 * i, op=i % 90,
                   name=f"blk.{i // 80}.ffn_moe_{i}".encode(), src=[2**46 + 368 * (i - 1), 2**46 + 368 * (i // 2), *[0] * 8])
        for i in range(1, 5000)
    ]  # fmt: skip
    body = kit.graph_body([2**46 + 368 * i for i in range(1, 3000)], records)
    some = Some()
    some.keep(0, 1, body)
    some.kept._put_away(0)
    print(f"{len(body)} bytes rest as {some.kept.resting}")
    assert 1024 * some.kept.resting < kept.RESTING_BYTES // 2


def test_graphs_that_come_by_turns_are_lowered_once_each() -> None:
    some = Some()
    for _ in range(3):
        for body in (b"prompt", b"token", b"other"):
            some.keep(0, 1, body, content=body)
            some.plan(0, 1)
    assert some.made == [6, 5, 5]
    some.keep(0, 2, b"token", content=b"token")
    assert some.made == [6, 5, 5], "another uid"


def test_spare_plans_are_few_and_paid_for() -> None:
    some, each = Some(), 8 + 5000 + 1000
    for number in range(10):
        some.keep(0, 1, b"%08d" % number, content=b"%d" % number)
        assert some.account.held == min(number + 1, kept.SPARE + 1) * each
    some.keep(0, 1, b"00000004", content=b"4")
    assert len(some.made) == 11, "it was the oldest"
    some.keep(0, 1, b"00000007", content=b"7")
    assert len(some.made) == 11
    some.kept.buffer_freed(2)
    assert some.account.held == kept.SPARE * each
    some.kept.buffer_freed(1)
    assert some.account.held == 0
    some.keep(0, 1, b"00000007", content=b"7")
    assert len(some.made) == 12, "its buffer was freed"
    some.keep(0, 1, b"00000008", content=b"8")
    some.kept.clear()
    assert some.account.held == 0


def test_spare_plans_are_no_more_than_so_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "SPARE_BYTES", 13_000)
    some = Some()
    for number in range(5):
        some.keep(0, 1, bytes(1000), content=b"%d" % number)
    assert some.account.held == 2 * 7000, "one spare plan of 7,000 bytes, and the one that is kept"


def test_spare_plans_make_room_first() -> None:
    some = Some(limit=20_000)
    for number in range(3):
        some.keep(0, 1, bytes(1000), content=b"%d" % number)
    some.keep(0, 1, bytes(1000), 12_000, content=b"large")
    assert some.account.held == 14_000


def test_a_client_that_sends_two_graphs_by_turns(
    kit: Any, client: Any, toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one of 7.0.0 does, whose server keeps the last one: each is read and lowered once, and computed each time."""
    c, read = kit.sum_of(client), []
    lowered = Graphs._lowered
    monkeypatch.setattr(Graphs, "_lowered", lambda self, *args: read.append(1) or lowered(self, *args))
    double = kit.record(buffer=c.handle, data=c.base + 32, id=4, op=2, flags=16, src=[1, 1, *[0] * 8])
    for i in (0, 1):
        client.set(c.records[i], np.full(4, [3, 4][i], "<f4").tobytes())
    for uid in (5, 5, 5, 5):
        client.compute([3], c.records, uid=uid)
        assert np.frombuffer(client.get(c.records[2], 16), "<f4").tolist() == [7] * 4
        client.compute([4], [*c.records, double], uid=uid)
        assert np.frombuffer(client.get(c.records[2], 16), "<f4").tolist() == [6] * 4
    assert toy.computed == 8 and len(read) == 2
    client.compute([3], c.records, uid=6)
    assert len(read) == 2, "another uid"
    client.compute([3, 4], [*c.records, double], uid=6)
    assert len(read) == 3, "other nodes of the same tensors"


def test_graphs_differ_by_all_but_their_uid() -> None:
    def content(n_nodes: int, rest: bytes, uid: int = 1, device: int = 0) -> Any:
        body = NEWEST.pack(C.GRAPH_COMPUTE, device=device, uid=uid, n_nodes=n_nodes) + rest
        return graphs._content(Request(C.GRAPH_COMPUTE, body, NEWEST[C.GRAPH_COMPUTE].request), device)

    assert content(1, bytes(300)) == content(1, bytes(300), uid=2)
    others = [
        content(2, bytes(300)),
        content(1, bytes(299) + b"1"),
        content(1, bytes(301)),
        content(1, bytes(300), 1, 3),
    ]
    assert len({content(1, bytes(300)), *others}) == 5


def test_what_the_client_believes() -> None:
    eight, seven = SentGraphs(V8), SentGraphs(V7)
    for sent in (eight, seven):
        sent.add(0, 10)
        sent.add(1, 11)
        assert sent.has(0, 10) and sent.has(1, 11) and not sent.has(1, 10)
        sent.add(0, 12)
        assert sent.has(0, 12)
    assert eight.has(0, 10) and not seven.has(0, 10), "7.0.0 keeps the last one alone"
    eight.buffer_freed()
    assert not eight.has(0, 10)
    for number in range(100, 100 + 1022):
        eight.add(0, number)
    assert eight.has(0, 100)
    eight.add(0, 5000)  # the two that the free took are counted
    assert eight.has(0, 5000) and not eight.has(0, 100)


# ---- wrong variants


def not_kept(kit: Any, client: Any) -> None:
    test_a_uid_that_is_not_kept(kit, client, 0)


FULL, KEEP, REST = (KeptGraphs, "make_room"), (KeptGraphs, "keep"), (KeptGraphs, "_put_away")
FREED, SENT = (KeptGraphs, "buffer_freed"), (SentGraphs, "buffer_freed")
RESTS, EMPTIED = test_plans_rest_before_memory_runs_out, test_the_1025th_graph_empties_the_set_first
LIMIT, BACK = test_graphs_at_rest_have_a_limit, test_a_uid_comes_back_after_its_buffer_was_freed
WITHOUT = "self._of[device] = {u: k for u, k in self._of[device].items() if u != uid}"
MUTANTS: dict[str, tuple[Mutant, Callable[..., Any]]] = {
    "a full set is not emptied": ((*FULL, ">= self._max_graphs", "> 1 << 20"), EMPTIED),
    "the set holds one more": ((*FULL, ">= self", "> self"), EMPTIED),
    "uid 0 counts": ((*FULL, " - (0 in of_device)", ""), test_a_graph_that_is_not_kept_does_not_count),
    "a known uid empties nothing": (
        (*FULL, "if uid and", "if uid not in of_device and"),
        test_a_known_uid_empties_a_full_set_too,
    ),
    "a refused graph leaves the one before": (
        (*FULL, "self._forget(device, uid, spare=True)\n    of_device[uid] = None", "of_device.setdefault(uid)"),
        test_a_refused_graph_is_not_kept,
    ),
    "a free makes room": (
        (KeptGraphs, "_forget", "self._of[device][uid] = None", WITHOUT),
        test_what_a_free_took_counts,
    ),
    "a free takes nothing": ((*FREED, "handle in kept.handles", "False"), BACK),
    "a free takes all": ((*FREED, "handle in kept.handles", "True"), BACK),
    "uid 0 can be asked for": ((KeptGraphs, "plan", ".get(uid) if uid else", ".get(uid) if True else"), not_kept),
    "nothing rests when room is short": ((*KEEP, "self._put_away(0)", "pass"), RESTS),
    "rest has no limit": ((*KEEP, "self.resting > RESTING_BYTES", "False"), LIMIT),
    "work memory at rest is paid for": ((*REST, "self._devices[device].give(work)", "pass"), RESTS),
    "compressed bytes are not": ((*REST, "give(host - len(body))", "give(host)"), RESTS),
    "a device's last plan rests": ((*REST, "lasts.get(device) == uid", "False"), test_each_devices_last_plan_is_ready),
    "noise is compressed": ((*REST, "len(body) >= host", "False"), test_noise_that_does_not_shrink_is_left),
    "what is forgotten rests on": ((KeptGraphs, "_forget", "self.resting -= len(kept.body)", "pass"), LIMIT),
    "a spare plan outlives its buffer": (
        (*FREED, "handle in spare.handles", "False"),
        test_spare_plans_are_few_and_paid_for,
    ),
    "spare plans are kept without end": (
        (KeptGraphs, "_drop_spare", "len(self._spare) > SPARE", "False"),
        test_spare_plans_are_few_and_paid_for,
    ),
    "the bytes of spare plans do not count": (
        (KeptGraphs, "_drop_spare", "size > most", "False"),
        test_spare_plans_are_no_more_than_so_many_bytes,
    ),
    "spare plans stand in the way": ((*KEEP, "self._drop_spare(0)", "pass"), test_spare_plans_make_room_first),
    "nothing is spare": ((*FULL, "spare=True", "spare=False"), test_graphs_that_come_by_turns_are_lowered_once_each),
    "nodes are not looked at": (
        (graphs, "_content", 'request.record["n_nodes"].tobytes()', "b''"),
        test_graphs_differ_by_all_but_their_uid,
    ),
    "the uid counts": (
        (graphs, "_content", "[request.layout.itemsize :]", ""),
        test_a_client_that_sends_two_graphs_by_turns,
    ),
    "the client forgets what a free took": (
        (*SENT, "for uid in of_device:\n            of_device[uid] = 0", "of_device.clear()"),
        test_what_the_client_believes,
    ),
    "the client remembers through a free": ((*SENT, "of_device[uid] = 0", "pass"), test_what_the_client_believes),
    "the client thinks of one device": (
        (SentGraphs, "has", "get(device, {})", "get(0, {})"),
        test_what_the_client_believes,
    ),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_are_caught(kit: Any, client: Any, toy: Any, monkeypatch: pytest.MonkeyPatch, mutant: str) -> None:
    wrong, test = MUTANTS[mutant]
    assert_caught(monkeypatch, wrong, test, kit=kit, client=client, toy=toy)
