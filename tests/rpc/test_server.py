"""A server and a raw client glued together in memory: every command does what the protocol says
(pyggml_rpc/wire.py: its tables)."""

import re
from typing import Any

import numpy as np
import pytest
from pyggml_rpc.connection import Request
from pyggml_rpc.errors import RefusedError
from pyggml_rpc.server import Server
from pyggml_rpc.wire import Command

from pyggml.dtypes import GGMLType
from pyggml.ops import Op

C = Command


@pytest.fixture(params=["host memory", "far memory"])
def anywhere(request: pytest.FixtureRequest, kit: Any) -> Server:
    return Server([kit.ToyDevice(host=request.param == "host memory")])


def test_hello_and_devices(kit: Any, toy: Any) -> None:
    client = kit.Glued(Server([toy, kit.ToyDevice(total=1000)]))
    assert str(client.client_end.version) == "8.0.0"
    assert client.request(C.DEVICE_COUNT) == {"device_count": 2}
    assert client.request(C.GET_ALIGNMENT, device=1) == {"alignment": 64}
    assert client.request(C.GET_MAX_SIZE, device=0) == {"max_size": 2**64 - 1}
    assert client.request(C.GET_DEVICE_MEMORY, device=1) == {"free": 844, "total": 938}, "less a margin, and a share"


def test_what_a_peer_offers_in_hello_is_ignored(kit: Any, server: Server) -> None:
    client = kit.Glued(server, hello=False)
    client.ask(C.HELLO, b"\xff" * 24)
    assert not client.replies[0].record["conn_caps"].any()
    assert client.request(C.DEVICE_COUNT) == {"device_count": 1}


@pytest.mark.parametrize(
    "command", [C.GET_ALIGNMENT, C.GET_MAX_SIZE, C.GET_DEVICE_MEMORY, C.ALLOC_BUFFER, C.GRAPH_RECOMPUTE]
)
def test_unknown_device(client: Any, command: Command) -> None:
    with pytest.raises(RefusedError, match=f"{command.name}: device 1 of 1"):
        client.request(command, device=1)


def test_buffers(client: Any, toy: Any) -> None:
    reply = client.request(C.ALLOC_BUFFER, device=0, size=1000)
    assert reply["remote_ptr"] != 0 and reply["remote_size"] >= 1000
    base = client.request(C.BUFFER_GET_BASE, remote_ptr=reply["remote_ptr"])["base_ptr"]
    assert base != 0 and base % 64 == 0
    assert client.request(C.BUFFER_GET_BASE, remote_ptr=reply["remote_ptr"])["base_ptr"] == base, "stable"
    real = toy.live[0].base
    assert real not in (base, reply["remote_ptr"]), "a real address was told"
    client.request(C.FREE_BUFFER, remote_ptr=reply["remote_ptr"])
    assert toy.live[0].size == 0, "not freed"
    with pytest.raises(RefusedError, match="not a buffer of this connection"):
        client.request(C.BUFFER_GET_BASE, remote_ptr=reply["remote_ptr"])


def test_empty_buffer(client: Any) -> None:
    reply = client.request(C.ALLOC_BUFFER, device=0, size=0)
    assert reply["remote_ptr"] != 0 and reply["remote_size"] == 0
    assert client.request(C.BUFFER_GET_BASE, remote_ptr=reply["remote_ptr"])["base_ptr"] == 0


@pytest.mark.parametrize("size", [939, 1000, 2**40, 2**63, 2**64 - 1])
def test_too_much_is_answered_not_closed(kit: Any, size: int) -> None:
    client = kit.Glued(Server([kit.ToyDevice(total=1000)], client_share=1.0))
    assert client.request(C.ALLOC_BUFFER, device=0, size=size) == {"remote_ptr": 0, "remote_size": 0}
    client.alloc(938)


def test_a_device_that_fails_to_allocate_is_answered(kit: Any) -> None:
    server = Server([kit.ToyDevice(total=2**62)])
    client = kit.Glued(server)
    assert client.request(C.ALLOC_BUFFER, device=0, size=2**61) == {"remote_ptr": 0, "remote_size": 0}
    assert server.devices[0].used == 0


def test_the_memory_on_offer_is_enforced_and_honest(kit: Any, toy: Any) -> None:
    server = Server([toy], memory_limit=1000, client_share=1.0)
    one, two = kit.Glued(server), kit.Glued(server)
    handle, _ = one.alloc(600)
    assert two.request(C.GET_DEVICE_MEMORY, device=0) == {"free": 400, "total": 1000}
    assert two.request(C.ALLOC_BUFFER, device=0, size=401)["remote_ptr"] == 0
    two.alloc(400)
    one.request(C.FREE_BUFFER, remote_ptr=handle)
    assert two.request(C.GET_DEVICE_MEMORY, device=0)["free"] == 600


def test_set_get_with_offsets(kit: Any, anywhere: Server) -> None:
    client = kit.Glued(anywhere)
    handle, base = client.alloc(256)
    whole = kit.record((64,), buffer=handle, data=base)
    part = kit.record((16,), buffer=handle, data=base + 64)
    data = np.random.default_rng(1).integers(0, 256, 256, np.uint8).tobytes()
    client.set(whole, data)
    assert client.get(part, 64) == data[64:128]
    client.set(part, b"xyz", offset=61)
    assert client.get(whole, 10, offset=120) == data[120:125] + b"xyz" + data[128:130]
    assert client.get(whole, 0, offset=256) == b""


def test_what_is_known_of_a_tensor_ends_with_its_buffer(kit: Any, anywhere: Server) -> None:
    """Requests that come again are not checked again: they must be refused all the same when the memory is gone."""
    client = kit.Glued(anywhere)
    (freed, base), (other, at) = client.alloc(64), client.alloc(64)
    gone, stays = kit.record((16,), buffer=freed, data=base), kit.record((16,), buffer=other, data=at)
    for value in (b"a", b"b", b"c"):
        for tensor in (gone, stays):
            client.set(tensor, 64 * value)
            assert client.get(tensor, 64) == 64 * value
            client.set(tensor, value, offset=63)
            assert client.get(tensor, 1, offset=63) == value
    client.request(C.FREE_BUFFER, remote_ptr=freed)
    assert client.get(stays, 64) == 64 * b"c"
    for repeat in (lambda c: c.get(gone, 64), lambda c: c.set(gone, 64 * b"d")):
        again = kit.Glued(anywhere)
        again.session.buffers.by_handle = client.session.buffers.by_handle
        again.session.tensors.known = client.session.tensors.known
        with pytest.raises(RefusedError, match="in no buffer of this connection"):
            repeat(again)


def test_clear_and_memset(kit: Any, anywhere: Server) -> None:
    client = kit.Glued(anywhere)
    handle, base = client.alloc(64)
    whole = kit.record((16,), buffer=handle, data=base)
    assert client.get(whole, 64) == bytes(64), "a buffer shows what another client left"
    client.request(C.BUFFER_CLEAR, remote_ptr=handle, value=7)
    client.request(C.MEMSET_TENSOR, tensor=whole, offset=10, size=4, value=255)
    assert client.get(whole, 64) == b"\7" * 10 + b"\xff" * 4 + b"\7" * 50


def test_copy(kit: Any, anywhere: Server) -> None:
    client = kit.Glued(anywhere)
    (h1, b1), (h2, b2) = client.alloc(64), client.alloc(64)
    src, dst = kit.record((4,), buffer=h1, data=b1 + 16), kit.record((2, 2), buffer=h2, data=b2)
    client.set(src, bytes(range(16)))
    assert client.request(C.COPY_TENSOR, src=src, dst=dst) == {"result": 1}
    assert client.get(dst, 16) == bytes(range(16))


def test_init_tensor_without_a_buffer_is_nothing(kit: Any, client: Any) -> None:
    client.request(C.INIT_TENSOR, tensor=kit.record((32,), GGMLType.Q4_0))
    handle, base = client.alloc(64)
    client.request(C.INIT_TENSOR, tensor=kit.record((32,), GGMLType.Q4_0, buffer=handle, data=base))


def test_alloc_size_asks_shapes_alone(kit: Any, client: Any) -> None:
    foreign = kit.record((64, 3), buffer=12345, data=99)
    body = {
        "device": 0,
        "tensor": kit.record((32, 5), GGMLType.Q4_0, buffer=777),
        "srcs": np.concatenate([foreign] * 10),
    }
    assert client.request(C.GET_ALLOC_SIZE, **body) == {"alloc_size": 90}
    body["srcs"]["type"] = 4  # a removed type, but these sources are absent
    body["srcs"]["id"] = 0
    assert client.request(C.GET_ALLOC_SIZE, **body) == {"alloc_size": 90}


def test_compute_and_recompute(kit: Any, anywhere: Server) -> None:
    client = kit.Glued(anywhere)
    c = kit.sum_of(client)
    assert c.run(client) == kit.SUM
    client.set(c.records[0], np.array([5, 5, 5, 5], "<f4").tobytes())
    client.recompute(0)
    assert np.frombuffer(client.get(c.records[2], 16), "<f4").tolist() == [15, 25, 35, 45]
    assert anywhere.counters.requests[C.GRAPH_COMPUTE] == 1
    assert anywhere.counters.requests[C.GRAPH_RECOMPUTE] == 1
    assert anywhere.counters.bytes[C.SET_TENSOR] == 48


def test_records_in_any_order(kit: Any, client: Any) -> None:
    c = kit.sum_of(client)
    c.records.reverse()
    client.set(c.records[2], np.ones(4, "<f4").tobytes())
    client.compute([3], c.records)
    assert np.frombuffer(client.get(c.records[0], 16), "<f4").tolist() == [1, 1, 1, 1]


def test_what_is_not_computed_is_not_looked_at(kit: Any, client: Any, toy: Any) -> None:
    """A node without the COMPUTE flag, a view, an empty node, an operand with a foreign op and foreign ancestors."""
    c = kit.sum_of(client)
    home = {"buffer": c.handle, "data": c.base}
    c.records[0]["op"], c.records[0]["src"][0, 0] = Op.FLASH_ATTN_EXT, 4711
    elsewhere = kit.record((9,), id=4)  # on another machine: no buffer, no data
    idle = kit.record((4,), id=5, op=Op.CONV_3D, src=[4, *[0] * 9], **home)
    view = kit.record((4,), id=6, op=Op.VIEW, flags=16, view_src=1, **home)
    empty = kit.record((4, 0), id=7, op=Op.ADD, flags=16, src=[4, 4, *[0] * 8], buffer=c.handle, data=c.base + 64)
    client.compute([5, 6, 7, 3], [*c.records, elsewhere, idle, view, empty])
    assert toy.computed == 1


def test_an_empty_graph(kit: Any, client: Any) -> None:
    client.compute([], [])
    client.recompute(0)


def test_graphs_that_do_not_touch_a_freed_buffer_stay(kit: Any, client: Any, toy: Any) -> None:
    c = kit.sum_of(client)
    other, _ = client.alloc(64)
    c.run(client)
    client.request(C.FREE_BUFFER, remote_ptr=other)
    client.recompute(0)
    assert toy.computed == 2
    client.request(C.FREE_BUFFER, remote_ptr=c.handle)
    with pytest.raises(RefusedError, match="no graph is kept for device 0"):
        client.recompute(0)


def test_one_graph_for_each_device_and_connection(kit: Any, toy: Any) -> None:
    second = kit.ToyDevice()
    server = Server([toy, second])
    client, stranger = kit.Glued(server), kit.Glued(server)
    for device in (0, 1):
        assert kit.sum_of(client, device).run(client) == kit.SUM
    for device in (0, 1, 0):
        client.recompute(device)
    assert (toy.computed, second.computed) == (3, 2)
    with pytest.raises(RefusedError, match="no graph"):
        stranger.recompute(0)


def test_a_graph_runs_on_its_device(kit: Any, toy: Any) -> None:
    second = kit.ToyDevice()
    client = kit.Glued(Server([toy, second]))
    c = kit.sum_of(client, device=1)
    client.compute([3], c.records, device=1)
    assert (toy.computed, second.computed) == (0, 1)
    with pytest.raises(RefusedError, match="memory of another device"):
        client.compute([3], c.records, device=0)


def test_strides_over_4_gib_are_completed(kit: Any) -> None:
    """A dense F32 tensor of 2^30 x 2 x 2 elements arrives with nb = 4, 0, 0, 0: the real client cuts strides."""
    client = kit.Glued(Server([kit.ToyDevice(total=1 << 40)]))
    handle, base = client.alloc(1 << 34)
    tensor = kit.record((1 << 30, 2, 2), buffer=handle, data=base)
    assert tensor["nb"].tolist() == [[4, 0, 0, 0]]
    client.set(tensor, b"end", offset=(1 << 34) - 3)
    assert client.get(tensor, 3, offset=(1 << 34) - 3) == b"end"


def test_a_session_leaves_nothing(kit: Any, toy: Any, server: Server) -> None:
    client = kit.Glued(server)
    client.alloc(100)
    kit.sum_of(client).run(client)
    assert server.devices[0].used > 164, "buffers, and the graph"
    client.session.close()
    assert server.devices[0].used == 0 and all(b.size == 0 for b in toy.live)


def test_failed_computation_ends_this_client_alone(kit: Any, server: Server) -> None:
    client, other = kit.Glued(server), kit.Glued(server)
    handle, base = client.alloc(256)
    home = {"buffer": handle}
    table, rows = (
        kit.record((4, 2), id=1, data=base, **home),
        kit.record((1,), GGMLType.I32, id=2, data=base + 64, **home),
    )
    out = kit.record((4,), id=3, data=base + 128, op=Op.GET_ROWS, flags=16, src=[1, 2, *[0] * 8], **home)
    client.set(rows, (2).to_bytes(4, "little"))
    with pytest.raises(RefusedError, match=r"GRAPH_COMPUTE.*row 2 or 2 of 2"):
        client.compute([3], [table, rows, out])
    assert kit.sum_of(other).run(other) == kit.SUM


# ---- counters and completeness


def test_every_command_has_a_handler(client: Any) -> None:
    handled = set(client.session._handlers) | {C.SET_TENSOR, C.SET_TENSOR_2D, C.GET_TENSOR, C.GRAPH_COMPUTE}
    assert handled == set(Command)


def test_messages_are_one_line_whatever_a_name_holds(kit: Any, client: Any) -> None:
    evil = kit.record((4,), buffer=1, data=1, name=b"a\nERROR: b\x1b[31m\xff")
    with pytest.raises(RefusedError) as caught:
        client.request(C.MEMSET_TENSOR, tensor=evil)
    assert re.fullmatch(r"[ -~\ufffd]+", str(caught.value))


def test_a_request_out_of_thin_air(client: Any) -> None:
    body = client.protocol.pack(C.BUFFER_CLEAR, remote_ptr=5)
    with pytest.raises(RefusedError, match="BUFFER_CLEAR: 0x5 is not a buffer"):
        client.session.execute(Request(C.BUFFER_CLEAR, body, client.protocol[C.BUFFER_CLEAR].request))
    assert client.session.server.counters.refused == 1
