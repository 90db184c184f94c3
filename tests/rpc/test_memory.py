"""What clients may make a server keep: counted before it is made, against what is offered and against each one's share."""

import gc
import re
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from pyggml_rpc.buffers import BUFFER_COST, UNCOUNTED
from pyggml_rpc.connection import ServerConnection
from pyggml_rpc.errors import RefusedError
from pyggml_rpc.graphs import READING
from pyggml_rpc.memory import MARGIN, Account, Ledger, NoRoomError, resident_bytes
from pyggml_rpc.server import Server
from pyggml_rpc.session import Session
from pyggml_rpc.wire import Command, pack_header

from pyggml.backend import host
from pyggml.backend.cpu import CPUDevice
from pyggml.backend.host import HostBuffer, host_memory
from pyggml.dtypes import GGMLType
from pyggml.ops import Op
from pyggml.tensor import pack_params

C = Command
MIB = 1 << 20


# ---- the ledger


def taken(ledger: Ledger, owner: object) -> int:
    """All that it can still get, got."""
    room = ledger.offer(owner)[0]
    ledger.take(owner, room)
    with pytest.raises(NoRoomError, match=r"no room for 1 bytes: 0 are left for this client, which holds \d+ of"):
        ledger.take(owner, 1)
    return room


def test_a_share_is_of_what_the_others_have_left() -> None:
    ledger = Ledger(lambda: (10**6, 10**6), limit=1000, share=0.5)
    assert [taken(ledger, name) for name in "abc"] == [500, 250, 125]
    ledger.give("a", 500)
    assert taken(ledger, "c") == (1000 - 250) // 2 - 125
    assert ledger.held == 250 + 375


def test_one_client_may_have_nearly_all() -> None:
    ledger = Ledger(lambda: (10**6, 10**6), limit=1000)
    assert taken(ledger, "alone") == 900
    assert taken(ledger, "next") == 90


def test_connections_of_one_owner_have_one_share() -> None:
    ledger = Ledger(lambda: (10**6, 10**6), limit=1000, share=0.5)
    one, two = Account(ledger, "a"), Account(ledger, "a")
    one.take(300)
    with pytest.raises(NoRoomError):
        two.take(201)
    two.take(200)
    one.close()
    two.take(300)
    two.close()
    assert ledger.held == 0


def test_what_is_free_is_offered_less_a_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a memory whose pages come into being when they are written, what is lent and not written still looks free."""
    free, total, used = 20 << 30, 24 << 30, [100 * MIB]
    monkeypatch.setattr("pyggml_rpc.memory.resident_bytes", lambda: used[0])
    ledger = Ledger(lambda: (free, total), share=1.0)
    assert ledger.offer("a") == (free - MARGIN, free - MARGIN)
    ledger.take("a", 10 << 30)
    assert ledger.offer("a") == ((9 << 30), free - MARGIN), "none of it is written yet"
    free, used[0] = free - (4 << 30), used[0] + (4 << 30)
    assert ledger.offer("a") == ((9 << 30), 19 << 30), "4 GiB of it are"
    free -= 8 << 30  # another program
    assert ledger.offer("a") == (1 << 30, 11 << 30)
    far = Ledger(lambda: (5 << 30, 16 << 30), share=1.0, lazy=False)
    far._sum = 3 << 30  # of a GPU, what is lent is no longer free
    assert far.offer("a") == (4 << 30, 7 << 30)


def test_a_margin_of_a_small_device_is_small() -> None:
    assert Ledger(lambda: (160, 160), share=1.0).offer("a") == (150, 150)
    assert Ledger(lambda: (0, 0)).offer("a") == (0, 0), "not known"


class Ledgers(RuleBasedStateMachine):
    """Whatever is taken and given back in any order: the sums are right, and no limit is passed."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(lambda: (1 << 30, 1 << 30), limit=1000, share=0.75)
        self.accounts = [Account(self.ledger, owner) for owner in ("a", "a", "b", "c")]

    @rule(account=st.integers(0, 3), size=st.integers(0, 1200))
    def take(self, account: int, size: int) -> None:
        chosen = self.accounts[account]
        before = chosen.held, self.ledger.held, self.ledger.offer(chosen.owner)[0]
        try:
            chosen.take(size)
        except NoRoomError:
            assert size > before[2] and (chosen.held, self.ledger.held) == before[:2]
        else:
            assert size <= before[2] and chosen.held == before[0] + size

    @rule(account=st.integers(0, 3), part=st.integers(0, 4))
    def give(self, account: int, part: int) -> None:
        chosen = self.accounts[account]
        chosen.give(chosen.held * part // 4)

    @rule(account=st.integers(0, 3))
    def close(self, account: int) -> None:
        self.accounts[account].close()

    @invariant()
    def sums(self) -> None:
        assert self.ledger.held == sum(a.held for a in self.accounts) <= 1000
        assert self.ledger.held < 1000, "something is left for the next"

    def teardown(self) -> None:
        for account in self.accounts:
            account.close()
        assert self.ledger.held == 0 and not self.ledger._held


TestLedgers = Ledgers.TestCase


# ---- the machine's memory


def test_buffers_are_mapped_and_never_cleared_by_hand() -> None:
    before = resident_bytes()
    buffer = HostBuffer.alloc(CPUDevice(), 1 << 30)
    assert buffer.base % 64 == 0 and buffer.size == 1 << 30
    assert resident_bytes() - before < 64 * MIB, "all of it was written to"
    assert not buffer.memory[:MIB].any() and not buffer.memory[-MIB:].any()
    buffer.memory[: 128 * MIB] = 1
    assert resident_bytes() - before > 100 * MIB
    buffer.free()
    gc.collect()
    assert resident_bytes() - before < 64 * MIB, "it is not given back"
    assert not HostBuffer.alloc(CPUDevice(), 1 << 30).memory[: 128 * MIB].any(), "it shows what was there before"


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1])
def test_buffers_of_any_size_are_aligned_and_zero(size: int) -> None:
    buffer = HostBuffer.alloc(CPUDevice(), size)
    assert buffer.memory.size == size and not buffer.memory.any()
    assert not size or buffer.base % 64 == 0


@pytest.mark.parametrize("version", [1, 2])
def test_a_control_groups_limit_is_the_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int) -> None:
    free, total = host_memory()
    files = tmp_path / "limit", tmp_path / "used", tmp_path / "stat"
    for path, text in zip(files, (f"{1 << 30}\n", f"{700 * MIB}\n", f"anon 5\ninactive_file {MIB}\n"), strict=True):
        path.write_text(text)
    monkeypatch.setattr(host, "_group_files", lambda: [files])
    assert host_memory() == (324 * MIB + MIB, 1 << 30) < (free, total)
    files[0].write_text("max\n")
    assert host_memory()[1] == total


# ---- what clients cause


@pytest.fixture
def cpu() -> Iterator[Server]:
    server = Server([CPUDevice()], n_threads=2, memory_limit=256 * MIB)
    yield server
    server.close()


def rope_table(kit: Any, client: Any, tokens: int) -> tuple[list[int], list[Any]]:
    """A node whose work memory is large and whose operands, of zero strides, are not."""
    handle, base = client.alloc(256 * tokens)
    home = {"buffer": handle, "data": base}
    x = kit.record((32, 1, tokens), id=1, nb=[4, 0, 0, 0], **home)
    positions = kit.record((tokens,), GGMLType.I32, id=2, nb=[0, 0, 0, 0], **home)
    params = pack_params("5i6f", 0, 32, 0, 0, 0, 10000.0, 1.0, 0.0, 1.0, 32.0, 1.0)
    out = {"op": Op.ROPE, "flags": 16, "op_params": params, "src": [1, 2, *[0] * 8]}
    return [3], [x, positions, kit.record((32, 1, tokens), id=3, buffer=handle, data=base + 4096, **out)]


def test_work_memory_counts(kit: Any, cpu: Server) -> None:
    """1,204 bytes once made gigabytes that no limit knew of, and kept them."""
    ledger, tokens = cpu.devices[0].ledger, 1 << 16
    clients, refused = [], 0
    for _ in range(8):
        client = kit.Glued(cpu)
        clients.append(client)
        if client.offer() < 256 * tokens:
            continue
        nodes, tensors = rope_table(kit, client, tokens)
        before = ledger.held
        try:
            client.compute(nodes, tensors)
            assert ledger.held - before > 128 * tokens, "the table is not counted"
        except RefusedError as error:
            refused += 1
            assert re.search(r"GRAPH_COMPUTE: (no room for \d+ bytes|the graph needs \d+ bytes of work)", str(error))
        assert ledger.held <= 256 * MIB
    assert refused >= 1
    for client in clients:
        client.session.close()
    assert ledger.held == 0


def test_a_new_graph_replaces_the_old_ones_memory(kit: Any, cpu: Server) -> None:
    client = kit.Glued(cpu)
    nodes, tensors = rope_table(kit, client, 1 << 16)
    client.compute(nodes, tensors)
    held = cpu.devices[0].used
    for _ in range(20):
        client.compute(nodes, tensors)
    assert cpu.devices[0].used == held
    client.request(C.FREE_BUFFER, remote_ptr=int(tensors[0]["buffer"][0]))
    assert cpu.devices[0].used == 0, "the graph went with its buffer"


def test_empty_tensors_have_no_endless_dimensions(kit: Any, cpu: Server) -> None:
    """2^28 empty matrices once took 2 GiB of work memory."""
    client = kit.Glued(cpu)
    handle, base = client.alloc(MIB)
    home = {"buffer": handle, "data": base}
    experts = kit.record((0, 1, 1 << 28), id=1, nb=[4, 4, 4, 4], **home)
    x, ids = kit.record((0, 1, 1), id=2, **home), kit.record((1, 1), GGMLType.I32, id=3, **home)
    out = kit.record((1, 1, 1), id=9, op=Op.MUL_MAT_ID, flags=16, src=[1, 2, 3, *[0] * 7], **home)
    with pytest.raises(RefusedError, match="a tensor of no elements with dimensions beyond a buffer of 1048576"):
        client.compute([9], [experts, x, ids, out])


def test_a_graph_counts_while_it_arrives(kit: Any, toy: Any) -> None:
    """Its memory is made as its bytes come, and each time it is counted first."""
    server = Server([toy], memory_limit=4 * MIB)
    session = Session(server)
    connection = ServerConnection(receiving=session.receiving)
    body = bytes(3 * MIB)
    stream = pack_header(C.HELLO, 24) + bytes(24) + pack_header(C.GRAPH_COMPUTE, len(body)) + body
    fed = 0
    with pytest.raises(RefusedError, match=r"GRAPH_COMPUTE: no room for \d+ bytes"):
        while fed < len(stream):
            space = connection.space()
            count = min(len(space), len(stream) - fed)
            space[:count] = stream[fed : fed + count]
            connection.received(count)
            fed += count
            for _ in session.run(connection):
                pass
    assert 1 * MIB < fed < 3 * MIB and server.host.held <= 4 * MIB
    session.close()
    assert server.host.held == 0


def test_frames_on_their_way_to_a_gpu_count(kit: Any) -> None:
    """Tensors pass through the host's memory, which `-m` does not limit where GPUs are served, but what is free does."""
    server = Server([kit.ToyDevice(host=False)])
    server.host = Ledger(lambda: (MIB, MIB), share=1.0)
    client = kit.Glued(server)
    handle, base = client.alloc(4 * MIB)
    small, large = (kit.record((n,), buffer=handle, data=base) for n in (1000, MIB))
    client.set(small, bytes(4000))
    assert client.get(small, 4000) == bytes(4000) and server.host.held == 0
    attempts = (lambda c, t: c.set(t, bytes(4 * MIB)), lambda c, t: c.get(t, 4 * MIB))
    for attempt in attempts:
        with pytest.raises(RefusedError, match=r"_TENSOR: no room for 4194304 bytes"):
            attempt(client, large)
        client.session.close()
        assert server.host.held == 0 and server.devices[0].used == 0
        client = kit.Glued(server)
        handle, base = client.alloc(4 * MIB)
        large = kit.record((MIB,), buffer=handle, data=base)


# ---- what is counted is what it costs


def traced(action: Any) -> tuple[int, int]:
    """Bytes of Python's own memory (at most, kept) that an action takes."""
    gc.collect()
    tracemalloc.start()
    try:
        result = action()
        gc.collect()
        kept, most = tracemalloc.get_traced_memory()
        del result
    finally:
        tracemalloc.stop()
    return most, kept


def test_a_graphs_objects_cost_what_is_counted(kit: Any) -> None:
    server = Server([CPUDevice()], n_threads=2)
    client = kit.Glued(server)
    n = 3000
    handle, base = client.alloc(64 * n)
    tensors = [kit.record((4,), id=1, buffer=handle, data=base, name=b"x" * 63)]
    added = {"op": Op.ADD, "flags": 16, "buffer": handle}
    tensors += [
        kit.record((4,), id=i, data=base + 64 * i - 128, src=[i - 1, 1, *[0] * 8], **added) for i in range(2, n)
    ]
    body = kit.graph_body(list(range(2, n)), tensors)
    client.compute([2], tensors[:2])  # what is compiled and imported once
    before = server.host.held
    most, kept = traced(lambda: client.ask(C.GRAPH_COMPUTE, body))
    counted = server.host.held - before
    assert kept <= counted, (kept, counted)
    assert most <= READING * len(body) + 3 * len(body) + counted, "while it is read; the test's own copies are three"
    assert counted < 4 * kept, "far more than it costs"
    client.session.close()
    assert server.host.held == 0
    server.close()


def test_a_buffers_objects_cost_what_is_counted(kit: Any, toy: Any) -> None:
    server = Server([toy])
    client = kit.Glued(server)
    toy.live = []
    n = 2000
    _, kept = traced(lambda: [client.request(C.ALLOC_BUFFER, device=0, size=0) for _ in range(n)])
    assert kept / n < BUFFER_COST < 4 * kept / n
    assert server.devices[0].used == (n - UNCOUNTED) * BUFFER_COST
    client.session.close()
    assert server.devices[0].used == 0


def test_all_clients_together_have_so_many_buffers(kit: Any, toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyggml_rpc.server.MAX_BUFFERS", 5)
    server = Server([toy])
    one, two = kit.Glued(server), kit.Glued(server)
    for client in (one, one, one, two, two):
        client.alloc(64)
    assert two.request(C.ALLOC_BUFFER, device=0, size=0) == {"remote_ptr": 0, "remote_size": 0}
    one.session.close()
    two.alloc(64)
    two.session.close()
    assert server._buffers == 0


def test_counting_is_safe_between_threads() -> None:
    ledger = Ledger(lambda: (1 << 40, 1 << 40), limit=1 << 30)

    def work(owner: int) -> None:
        account = Account(ledger, owner)
        for size in np.random.default_rng(owner).integers(0, 1 << 20, 300).tolist():
            account.take(size)
            account.give(size // 2)
        account.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.held == 0 and not ledger._held
