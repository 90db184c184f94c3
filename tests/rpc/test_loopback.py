"""Our client on our server over real sockets: buffers, graphs, connections and weights."""

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from loopback import Adder, device_of
from pyggml_rpc.backend import HASH_ABOVE, RpcDevice, devices_from_spec
from pyggml_rpc.cache import WeightCache
from pyggml_rpc.server import Server
from pyggml_rpc.transport import Listener
from pyggml_rpc.wire import V7, V8, Command
from waiting import until

from pyggml import ops
from pyggml.backend.base import Usage, extra_devices
from pyggml.backend.host import host_memory
from pyggml.dtypes import GGMLType
from pyggml.errors import DeviceError, UnsupportedError
from pyggml.graph import Graph
from pyggml.tensor import Tensor

C = Command


# ---- the ordinary way


def test_devices_are_found_through_the_entry_point(listener: Listener) -> None:
    (device,) = extra_devices("rpc", listener.endpoint)
    assert isinstance(device, RpcDevice)
    assert (device.name, device.description) == ("RPC0", listener.endpoint)
    offered = (1 << 28) - (1 << 24)
    assert device.memory() == (int(0.9 * offered), offered)
    assert device.alignment == 64


def test_compute(listener: Listener, server: Server, toy: Any) -> None:
    adder = Adder(device_of(listener))
    assert adder.run(1, 2) == 3
    assert adder.run(10, 20) == 30
    assert toy.computed == 2
    assert server.counters.requests[C.GRAPH_COMPUTE] == 1
    assert server.counters.requests[C.GRAPH_RECOMPUTE] == 1
    assert server.counters.bytes[C.SET_TENSOR] == 64
    adder.close()


def test_a_run_costs_few_bytes_and_one_round_trip(listener: Listener, server: Server) -> None:
    adder = Adder(device_of(listener))
    adder.run(1, 2)
    recompute = {V7: 13, V8: 21}[server.protocol]
    before, asked = adder.device.client.bytes_sent, dict(adder.device.client.requests)
    adder.run(3, 4)
    assert adder.device.client.bytes_sent - before == 2 * (9 + 305 + 16) + recompute + 9 + 312
    made = {c.name for c in C if adder.device.client.requests[c] != asked[c]}
    assert made == {"SET_TENSOR", "GRAPH_RECOMPUTE", "GET_TENSOR"}
    adder.close()


def test_the_whole_graph_again_after_any_free(listener: Listener, server: Server) -> None:
    adder = Adder(device_of(listener))
    other = adder.device.alloc_buffer(64)
    adder.run(1, 2)
    other.free()
    assert adder.run(1, 5) == 6
    assert server.counters.requests[C.GRAPH_COMPUTE] == 2
    assert server.counters.requests[C.GRAPH_RECOMPUTE] == 0
    adder.close()


def test_two_plans_take_turns(listener: Listener, server: Server) -> None:
    device = device_of(listener)
    one, two = Adder(device), Adder(device)
    assert [one.run(1, 2), two.run(3, 4), one.run(5, 6), one.run(7, 8)] == [3, 7, 11, 15]
    assert server.counters.requests[C.GRAPH_COMPUTE] == {V7: 3, V8: 2}[server.protocol]
    one.close(), two.close()


def test_more_graphs_than_are_kept(listener: Listener, server: Server) -> None:
    """1,025 plans: both sides forget all at the same point, and the first is sent whole again."""
    device = device_of(listener)
    adder = Adder(device)
    plans = [adder.plan, *(adder.backend.plan(adder.graph) for _ in range(1024))]
    adder.buffer.set(adder.a, np.full(4, 1, "<f4").tobytes())
    adder.buffer.set(adder.b, np.full(4, 2, "<f4").tobytes())
    for plan in (*plans[:1024], *plans[:1024:100], plans[1024], plans[0], plans[1024], plans[0]):
        adder.backend.compute(plan)
    assert np.frombuffer(adder.buffer.get(adder.out), "<f4").tolist() == [3.0] * 4
    kept = {V7: 0, V8: 11 + 2}[server.protocol]
    assert server.counters.requests[C.GRAPH_RECOMPUTE] == kept
    assert server.counters.requests[C.GRAPH_COMPUTE] == 1024 + 11 + 4 - kept
    adder.close()


def test_graphs_that_a_free_took_are_counted(listener: Listener, server: Server) -> None:
    """A stock server keeps their uids: whoever did not count them would ask for a graph that is forgotten."""
    device = device_of(listener)
    adder, other = Adder(device), device.alloc_buffer(64)
    plans = [adder.backend.plan(adder.graph) for _ in range(1024)]
    for plan in plans:
        adder.backend.compute(plan)
    other.free()
    more = [adder.backend.plan(adder.graph) for _ in range(3)]
    for plan in (plans[0], *more, *more):  # the first of them empties the set
        adder.backend.compute(plan)
    adder.backend.synchronize()
    assert server.counters.requests[C.GRAPH_RECOMPUTE] == {V7: 0, V8: 3}[server.protocol]
    assert server.counters.refused == 0
    adder.close()


def test_buffer_operations(listener: Listener) -> None:
    device = device_of(listener)
    buffer, other = device.alloc_buffer(1 << 20), device.alloc_buffer(1 << 10)
    big, small = Tensor(GGMLType.I8, (1 << 20,)), Tensor(GGMLType.I8, (64,))
    buffer.place(big, 0)
    other.place(small, 128)
    data = np.random.default_rng(1).integers(0, 256, 1 << 20, np.uint8)
    buffer.set(big, data)
    assert buffer.get(big) == data.tobytes()
    assert buffer.get(big, 1000, 10) == data[1000:1010].tobytes()
    assert buffer.get(big, 5, 0) == b""
    buffer.memset(big, 7, 10, 5)
    assert buffer.get(big, 9, 7) == bytes([data[9]]) + b"\7" * 5 + bytes([data[15]])
    other.set(small, b"\1" * 64)
    assert buffer.copy(small, big)
    assert buffer.get(big, 0, 65) == b"\1" * 64 + bytes([data[64]])
    buffer.clear(9)
    assert set(buffer.get(big)) == {9}
    elsewhere = Tensor(GGMLType.I8, (64,))
    assert not buffer.copy(elsewhere, big)
    buffer.free(), other.free()
    buffer.free()


def test_data_may_change_after_set(listener: Listener) -> None:
    device = device_of(listener)
    buffer = device.alloc_buffer(64)
    tensor = Tensor(GGMLType.I8, (64,))
    buffer.place(tensor, 0)
    data = np.zeros(64, np.uint8)
    buffer.set(tensor, data)
    data[:] = 1
    assert buffer.get(tensor) == bytes(64)
    buffer.free()


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda b: np.frombuffer(b, "<f4").reshape(2, 2)])
def test_data_of_any_kind(listener: Listener, kind: Callable[[bytes], Any]) -> None:
    device = device_of(listener)
    buffer = device.alloc_buffer(64)
    tensor, nothing = Tensor(GGMLType.F32, (2, 2)), Tensor(GGMLType.F32, (2, 0))
    buffer.place(tensor, 0)
    buffer.place(nothing, 64)
    buffer.set(tensor, kind(bytes(range(16))))
    assert buffer.get(tensor) == bytes(range(16))
    buffer.set(nothing, b"")
    assert buffer.get(nothing) == b""
    buffer.free()


def test_a_server_that_does_not_tell_its_memory(listener: Listener, toy: Any) -> None:
    device = device_of(listener)
    toy.total = 0
    assert device.memory()[1] == host_memory()[1] > 0


def test_no_room(listener: Listener) -> None:
    with pytest.raises(DeviceError, match=f"RPC0 .{listener.endpoint}.: no room for a buffer of 1099511627776 bytes"):
        device_of(listener).alloc_buffer(1 << 40)


def test_alloc_size_is_asked_once_for_each_shape(listener: Listener, server: Server) -> None:
    device = device_of(listener)
    product = ops.mul_mat(Tensor(GGMLType.F32, (64, 8)), Tensor(GGMLType.F32, (64, 3)))
    for _ in range(3):
        assert device.alloc_size(product) == product.nbytes
        assert device.alloc_size(Tensor(GGMLType.Q4_0, (576, 4))) == 576 // 32 * 18 * 4
    assert device.alloc_size(Tensor(GGMLType.F32, (576, 4))) == 576 * 16
    assert server.counters.requests[C.GET_ALLOC_SIZE] == 2


def test_alloc_size_tells_the_sources_in_their_places(
    listener: Listener, server: Server, toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server may need room for what it makes of a source: the same result of other sources is another question."""
    asked: list[tuple[Any, ...]] = []

    def alloc_size(tensor: Tensor) -> int:
        asked.append(tuple(None if s is None else (s.type, s.ne) for s in tensor.src))
        return tensor.nbytes + 100 * len(asked)

    monkeypatch.setattr(toy, "alloc_size", alloc_size)
    device = device_of(listener)
    x, w = Tensor(GGMLType.F32, (64, 3)), Tensor(GGMLType.F32, (64, 8))
    product, other = ops.mul_mat(w, x), ops.mul_mat(Tensor(GGMLType.F16, (64, 8)), x)
    assert [device.alloc_size(t) - t.nbytes for t in (product, other, product, other)] == [100, 200, 100, 200]
    product.src = (w, None, x, None)
    assert device.alloc_size(product) == product.nbytes + 300
    assert asked[1:] == [((GGMLType.F16, w.ne), (GGMLType.F32, x.ne)), ((w.type, w.ne), None, (x.type, x.ne))]


def test_ops_that_cannot_be_sent(listener: Listener) -> None:
    device = device_of(listener)
    custom = Tensor(GGMLType.F32, (4,), op=ops.Op.CUSTOM)
    assert not device.supports_op(custom)
    with pytest.raises(UnsupportedError, match="CUSTOM cannot be sent"):
        device.open().plan(Graph([custom]))


# ---- one connection


def test_one_connection_for_an_endpoint(listener: Listener, server: Server) -> None:
    one, two = device_of(listener), device_of(listener)
    assert one.client is two.client and listener.n_clients == 1
    assert server.counters.requests[C.HELLO] == 1


def test_the_last_user_leaves_and_the_next_comes_back(listener: Listener, server: Server) -> None:
    device = device_of(listener)
    adder = Adder(device)
    adder.close()
    until(lambda: listener.n_clients == 0)
    assert server.devices[0].used == 0
    again = Adder(device)
    assert again.run(1, 1) == 2
    again.close()


def test_a_forgotten_client_leaves(listener: Listener) -> None:
    device = device_of(listener)
    assert listener.n_clients == 1
    del device
    gc.collect()
    until(lambda: listener.n_clients == 0)


def test_several_servers_and_devices(kit: Any) -> None:
    with (
        Listener(Server([kit.ToyDevice(), kit.ToyDevice()]), port=0) as first,
        Listener(Server([kit.ToyDevice()]), port=0) as second,
    ):
        devices = devices_from_spec(f"{first.endpoint}, {second.endpoint}")
        assert [d.name for d in devices] == ["RPC0", "RPC1", "RPC2"]
        adders = [Adder(d) for d in devices if isinstance(d, RpcDevice)]
        assert [a.run(i, 1) for i, a in enumerate(adders)] == [1, 2, 3]
        assert adders[0].device.client is adders[1].device.client is not adders[2].device.client
        assert not adders[2].buffer.copy(adders[0].a, adders[2].a), "not through two servers"
        for adder in adders:
            adder.close()


# ---- weights


def test_large_weights_are_asked_for_by_hash(kit: Any, tmp_path: Any) -> None:
    server = Server([kit.ToyDevice()], cache=WeightCache(tmp_path))
    data = np.random.default_rng(1).integers(0, 256, HASH_ABOVE + 8, np.uint8)
    tensor = Tensor(GGMLType.I8, (data.size,))
    with Listener(server, port=0) as listener:
        for sent, usage in ((1, Usage.WEIGHTS), (1, Usage.WEIGHTS), (2, Usage.COMPUTE)):
            buffer = device_of(listener).alloc_buffer(data.size, usage)
            buffer.place(tensor, 0)
            buffer.set(tensor, data)
            assert buffer.get(tensor) == data.tobytes()
            assert server.counters.requests[C.SET_TENSOR] == sent
            buffer.free()
        assert server.counters.requests[C.SET_TENSOR_HASH] == 2
        buffer = device_of(listener, hash_weights=False).alloc_buffer(data.size, Usage.WEIGHTS)
        buffer.place(tensor, 0)
        buffer.set(tensor, data)
        assert server.counters.requests[C.SET_TENSOR_HASH] == 2
        buffer.free()


def test_small_weights_are_sent(kit: Any, tmp_path: Any) -> None:
    server = Server([kit.ToyDevice()], cache=WeightCache(tmp_path))
    with Listener(server, port=0) as listener:
        buffer = device_of(listener).alloc_buffer(HASH_ABOVE, Usage.WEIGHTS)
        tensor = Tensor(GGMLType.I8, (HASH_ABOVE,))
        buffer.place(tensor, 0)
        buffer.set(tensor, np.zeros(HASH_ABOVE, np.uint8))
        assert buffer.get(tensor, 0, 1) == b"\0"
        assert server.counters.requests[C.SET_TENSOR_HASH] == 0
        buffer.free()
