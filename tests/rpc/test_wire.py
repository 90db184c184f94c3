"""The layouts of the wire, against the numbers that real peers use."""

import numpy as np
import pytest
from pyggml_rpc import wire
from pyggml_rpc.wire import NEWEST, PROTOCOLS, TENSOR, V7, V8, Command, Rest

# request bytes, reply bytes (None: no reply frame), as read in ggml-rpc.cpp
SIZES = {
    "ALLOC_BUFFER": (12, 16),
    "GET_ALIGNMENT": (4, 8),
    "GET_MAX_SIZE": (4, 8),
    "BUFFER_GET_BASE": (8, 8),
    "FREE_BUFFER": (8, None),
    "BUFFER_CLEAR": (9, None),
    "SET_TENSOR": (305, None),
    "SET_TENSOR_HASH": (312, 1),
    "GET_TENSOR": (312, 0),
    "COPY_TENSOR": (592, 1),
    "GRAPH_COMPUTE": (8, None),
    "GET_DEVICE_MEMORY": (4, 16),
    "INIT_TENSOR": (296, None),
    "GET_ALLOC_SIZE": (3260, 8),
    "HELLO": (24, 28),
    "DEVICE_COUNT": (0, 4),
    "GRAPH_RECOMPUTE": (4, None),
    "MEMSET_TENSOR": (313, None),
}
SIZES_8 = SIZES | {
    "GRAPH_COMPUTE": (16, None),
    "GRAPH_RECOMPUTE": (12, None),
    "SET_TENSOR_2D": (328, None),
    "GET_TENSOR_2D": (328, 0),
    "COMM_INIT": (80, 1),
    "COMM_ALLREDUCE": (300, None),
    "COMM_FREE": (4, None),
}
OFFSETS = {
    "id": 0,
    "type": 8,
    "buffer": 12,
    "ne": 20,
    "nb": 36,
    "op": 52,
    "op_params": 56,
    "flags": 120,
    "src": 124,
    "view_src": 204,
    "view_offs": 212,
    "data": 220,
    "name": 228,
    "use_count": 292,
}


@pytest.mark.parametrize(("protocol", "sizes"), [(V7, SIZES), (V8, SIZES_8)], ids=["7.0.0", "8.0.0"])
def test_numbers_and_sizes(protocol: wire.Protocol, sizes: dict[str, tuple[int, int | None]]) -> None:
    assert {int(command) for command in protocol.commands} == set(range(len(sizes)))
    for number, name in enumerate(sizes):
        command = Command(number)
        assert command.name == name
        message = protocol[command]
        reply = None if message.reply is None else message.reply.itemsize
        assert (message.request.itemsize, reply) == sizes[name], name


def test_tensor_record() -> None:
    assert TENSOR.fields is not None
    assert {name: field[1] for name, field in TENSOR.fields.items()} == OFFSETS
    assert TENSOR.itemsize == 296


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=str)
def test_which_commands_carry_more_than_a_record(protocol: wire.Protocol) -> None:
    more = {c.name for c, m in protocol.commands.items() if m.request_rest is not Rest.NOTHING}
    assert more == {"SET_TENSOR", "GRAPH_COMPUTE", "SET_TENSOR_2D"} & {c.name for c in protocol.commands}
    more = {c.name for c, m in protocol.commands.items() if m.reply_rest is not Rest.NOTHING}
    assert more == {"GET_TENSOR", "GET_TENSOR_2D"} & {c.name for c in protocol.commands}


def test_versions() -> None:
    assert list(map(str, PROTOCOLS)) == ["7.0.0", "8.0.0"] and NEWEST is V8


def test_uids() -> None:
    """7.0.0 has none: one graph is kept, whichever it is."""
    assert V7.pack(Command.GRAPH_RECOMPUTE, device=2, uid=9) == bytes([2, 0, 0, 0])
    assert V8.pack(Command.GRAPH_RECOMPUTE, device=2, uid=9) == bytes([2, 0, 0, 0, 9]) + bytes(7)
    requests = [
        wire.unpack(p[Command.GRAPH_RECOMPUTE].request, p.pack(Command.GRAPH_RECOMPUTE, uid=9)) for p in PROTOCOLS
    ]
    assert [p.uid_in(r) for p, r in zip(PROTOCOLS, requests, strict=True)] == [V7.uid(9), 9] == [V7.uid(3), V8.uid(9)]
    head = V8.pack(Command.GRAPH_COMPUTE, device=1, uid=2**40, n_nodes=3)
    assert head == b"\1\0\0\0" + (2**40).to_bytes(8, "little") + b"\3\0\0\0"


@pytest.mark.parametrize("dtype", [m.request for m in NEWEST.commands.values()], ids=[c.name for c in NEWEST.commands])
def test_unpack_gives_the_same_bytes(dtype: np.dtype[np.void]) -> None:
    body = np.random.default_rng(1).integers(0, 256, dtype.itemsize, np.uint8).tobytes()
    assert wire.unpack(dtype, body).tobytes() == body


def test_a_wrong_total_is_caught() -> None:
    with pytest.raises(AssertionError):
        wire.layout(13, ("device", wire.U32), ("size", wire.U64))


def test_pack() -> None:
    body = wire.pack(NEWEST[Command.ALLOC_BUFFER].request, device=1, size=2**40)
    assert body == bytes([1, 0, 0, 0]) + (2**40).to_bytes(8, "little")
    assert wire.pack_header(Command.GET_TENSOR, 312) == bytes([8, 56, 1, 0, 0, 0, 0, 0, 0])
