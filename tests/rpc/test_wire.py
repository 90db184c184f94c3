"""The layouts of the wire, against the numbers that real peers use."""

import numpy as np
import pytest
from pyggml_rpc import wire
from pyggml_rpc.wire import COMMANDS, PROTOCOL, TENSOR, Command, Rest

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


@pytest.mark.parametrize("number, name", list(enumerate(SIZES)))
def test_numbers_and_sizes(number: int, name: str) -> None:
    command = Command(number)
    assert command.name == name
    message = COMMANDS[command]
    reply = None if message.reply is None else message.reply.itemsize
    assert (message.request.itemsize, reply) == SIZES[name]


def test_tensor_record() -> None:
    assert TENSOR.fields is not None
    assert {name: field[1] for name, field in TENSOR.fields.items()} == OFFSETS
    assert TENSOR.itemsize == 296


def test_only_three_commands_carry_more_than_a_record() -> None:
    assert {c.name for c, m in COMMANDS.items() if m.request_rest is not Rest.NOTHING} == {
        "SET_TENSOR",
        "GRAPH_COMPUTE",
    }
    assert {c.name for c, m in COMMANDS.items() if m.reply_rest is not Rest.NOTHING} == {"GET_TENSOR"}


def test_version() -> None:
    assert str(PROTOCOL) == "7.0.0"


@pytest.mark.parametrize("dtype", [m.request for m in COMMANDS.values()], ids=[c.name for c in COMMANDS])
def test_unpack_gives_the_same_bytes(dtype: np.dtype[np.void]) -> None:
    body = np.random.default_rng(1).integers(0, 256, dtype.itemsize, np.uint8).tobytes()
    assert wire.unpack(dtype, body).tobytes() == body


def test_a_wrong_total_is_caught() -> None:
    with pytest.raises(AssertionError):
        wire.layout(13, ("device", wire.U32), ("size", wire.U64))


def test_pack() -> None:
    body = wire.pack(COMMANDS[Command.ALLOC_BUFFER].request, device=1, size=2**40)
    assert body == bytes([1, 0, 0, 0]) + (2**40).to_bytes(8, "little")
    assert wire.pack_header(Command.GET_TENSOR, 312) == bytes([8, 56, 1, 0, 0, 0, 0, 0, 0])
