"""Every byte layout of ggml's RPC protocols 7.0.0 and 8.0.0, and one table of commands for each version.

Owns layouts and numbers. All integers are little-endian and nothing is padded. What differs between versions is in
their `Protocol`: nobody else asks which version it is. Facts: ggml/include/ggml-rpc.h (version, conn_caps) and
ggml/src/ggml-rpc/ggml-rpc.cpp (`rpc_cmd`, `rpc_tensor`, `rpc_msg_*`, `GRAPH_CACHE_MAX`).

    request   | command u8 | length u64 | body |
    reply     | length u64 | body |                  only of the commands that have one
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Version(NamedTuple):
    """Of the protocol."""

    major: int
    minor: int
    patch: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"


Record = NDArray[np.void]  # one record is an array of shape (1,): a view of the bytes, not a copy
Layout = np.dtype[np.void]


def layout(size: int, *fields: tuple[Any, ...]) -> Layout:
    """A packed record of named fields whose total is asserted right where it is written."""
    dtype = np.dtype(list(fields))
    assert dtype.itemsize == size, (fields, dtype.itemsize)
    return dtype


class Command(IntEnum):
    """Commands, by their numbers on the wire (ggml-rpc.cpp: rpc_cmd)."""

    ALLOC_BUFFER = 0
    GET_ALIGNMENT = 1
    GET_MAX_SIZE = 2
    BUFFER_GET_BASE = 3
    FREE_BUFFER = 4
    BUFFER_CLEAR = 5
    SET_TENSOR = 6
    SET_TENSOR_HASH = 7
    GET_TENSOR = 8
    COPY_TENSOR = 9
    GRAPH_COMPUTE = 10
    GET_DEVICE_MEMORY = 11
    INIT_TENSOR = 12
    GET_ALLOC_SIZE = 13
    HELLO = 14
    DEVICE_COUNT = 15
    GRAPH_RECOMPUTE = 16
    MEMSET_TENSOR = 17
    SET_TENSOR_2D = 18
    GET_TENSOR_2D = 19
    COMM_INIT = 20
    COMM_ALLREDUCE = 21
    COMM_FREE = 22


assert len(Command) == 23

U8, U32, U64, I32 = "u1", "<u4", "<u8", "<i4"
MAX_SRC = 10

REQUEST_HEADER = layout(9, ("command", U8), ("length", U64))
REPLY_HEADER = layout(8, ("length", U64))

TENSOR = layout(
    296,
    ("id", U64),  # 0 = absent
    ("type", U32),
    ("buffer", U64),  # the handle of the buffer it lives in, 0 = none
    ("ne", U32, (4,)),
    ("nb", U32, (4,)),  # bytes; the reference client cuts strides over 4 GiB
    ("op", U32),
    ("op_params", "V64"),
    ("flags", I32),
    ("src", U64, (MAX_SRC,)),  # ids, 0 = absent
    ("view_src", U64),
    ("view_offs", U64),
    ("data", U64),  # the buffer's base plus something
    ("name", "S64"),  # NUL-padded, any bytes
    ("use_count", I32),
)
assert {name: TENSOR.fields[name][1] for name in ("buffer", "ne", "op", "src", "data", "name")} == {  # type: ignore[index]
    "buffer": 12,
    "ne": 20,
    "op": 52,
    "src": 124,
    "data": 220,
    "name": 228,
}

EMPTY = layout(0)
DEVICE = layout(4, ("device", U32))
HANDLE = layout(8, ("remote_ptr", U64))
RESULT = layout(1, ("result", U8))
ONE_TENSOR = layout(296, ("tensor", TENSOR))
HELLO = layout(24, ("conn_caps", U8, (24,)))
HELLO_REPLY = layout(28, ("major", U8), ("minor", U8), ("patch", U8), ("padding", U8), ("conn_caps", U8, (24,)))
SET_TENSOR = layout(305, ("tensor", TENSOR), ("cache_flag", U8), ("offset", U64))
GRAPH = layout(8, ("device", U32), ("n_nodes", U32))  # then ids u64[n_nodes], n_tensors u32, TENSOR[n_tensors]
GRAPH_UID = layout(16, ("device", U32), ("uid", U64), ("n_nodes", U32))  # likewise
DEVICE_UID = layout(12, ("device", U32), ("uid", U64))
# `n_copies` pieces of `size` bytes, `stride` apart in the tensor, one after the other on the wire
TENSOR_2D = layout(328, ("tensor", TENSOR), ("offset", U64), ("size", U64), ("n_copies", U64), ("stride", U64))
COMM_INIT = layout(80, ("device", U32), ("rank", U32), ("world", U32), ("port", U32), ("host", "S64"))
CAPS = 24  # bytes of conn_caps, which two communicating servers swap as well


class Rest(Enum):
    """What follows the fixed part of a request or reply."""

    NOTHING = 0
    GRAPH = 1  # node ids and tensor records, kept whole
    DATA = 2  # bytes of a tensor, received where they belong


class Message(NamedTuple):
    """The bodies of one command; `reply` None means that no reply frame is sent."""

    request: Layout
    reply: Layout | None = None
    request_rest: Rest = Rest.NOTHING
    reply_rest: Rest = Rest.NOTHING


C = Command
_COMMANDS_7: dict[Command, Message] = {
    C.ALLOC_BUFFER: Message(
        layout(12, ("device", U32), ("size", U64)), layout(16, ("remote_ptr", U64), ("remote_size", U64))
    ),
    C.GET_ALIGNMENT: Message(DEVICE, layout(8, ("alignment", U64))),
    C.GET_MAX_SIZE: Message(DEVICE, layout(8, ("max_size", U64))),
    C.BUFFER_GET_BASE: Message(HANDLE, layout(8, ("base_ptr", U64))),
    C.FREE_BUFFER: Message(HANDLE),
    C.BUFFER_CLEAR: Message(layout(9, ("remote_ptr", U64), ("value", U8))),
    C.SET_TENSOR: Message(SET_TENSOR, request_rest=Rest.DATA),
    C.SET_TENSOR_HASH: Message(layout(312, ("tensor", TENSOR), ("offset", U64), ("hash", U64)), RESULT),
    C.GET_TENSOR: Message(layout(312, ("tensor", TENSOR), ("offset", U64), ("size", U64)), EMPTY, reply_rest=Rest.DATA),
    C.COPY_TENSOR: Message(layout(592, ("src", TENSOR), ("dst", TENSOR)), RESULT),
    C.GRAPH_COMPUTE: Message(GRAPH, request_rest=Rest.GRAPH),
    C.GET_DEVICE_MEMORY: Message(DEVICE, layout(16, ("free", U64), ("total", U64))),
    C.INIT_TENSOR: Message(ONE_TENSOR),
    C.GET_ALLOC_SIZE: Message(
        layout(3260, ("device", U32), ("tensor", TENSOR), ("srcs", TENSOR, (MAX_SRC,))), layout(8, ("alloc_size", U64))
    ),
    C.HELLO: Message(HELLO, HELLO_REPLY),
    C.DEVICE_COUNT: Message(EMPTY, layout(4, ("device_count", U32))),
    C.GRAPH_RECOMPUTE: Message(DEVICE),
    C.MEMSET_TENSOR: Message(layout(313, ("tensor", TENSOR), ("offset", U64), ("size", U64), ("value", U8))),
}
_COMMANDS_8 = _COMMANDS_7 | {
    C.GRAPH_COMPUTE: Message(GRAPH_UID, request_rest=Rest.GRAPH),
    C.GRAPH_RECOMPUTE: Message(DEVICE_UID),
    C.SET_TENSOR_2D: Message(TENSOR_2D, request_rest=Rest.DATA),
    C.GET_TENSOR_2D: Message(TENSOR_2D, EMPTY, reply_rest=Rest.DATA),
    C.COMM_INIT: Message(COMM_INIT, layout(1, ("ok", U8))),
    C.COMM_ALLREDUCE: Message(layout(300, ("device", U32), ("tensor", TENSOR))),
    C.COMM_FREE: Message(DEVICE),
}

# what reads or writes buffers waits until all that was handed over is computed; the others are answered meanwhile
WAITS = frozenset(
    {C.SET_TENSOR, C.SET_TENSOR_2D, C.SET_TENSOR_HASH, C.GET_TENSOR, C.GET_TENSOR_2D, C.MEMSET_TENSOR, C.COPY_TENSOR}
    | {C.BUFFER_CLEAR, C.FREE_BUFFER, C.INIT_TENSOR, C.COMM_ALLREDUCE}
)

THE_ONLY_UID = 1


@dataclass(frozen=True, eq=False)
class Protocol:
    """One version: its commands, and how many graphs each side keeps for each device.

    A set of kept graphs that holds `max_graphs` is emptied before the next one is kept. Where a graph has no uid on the
    wire, all have the same one: the last graph replaces the one before.
    """

    version: Version
    commands: Mapping[Command, Message]
    max_graphs: int

    def __str__(self) -> str:
        return str(self.version)

    def __getitem__(self, command: Command) -> Message:
        return self.commands[command]

    @functools.cached_property
    def by_number(self) -> dict[int, tuple[Command, Message]]:
        """Number on the wire -> command and message."""
        return {int(command): (command, message) for command, message in self.commands.items()}

    def pack(self, command: Command, **fields: Any) -> bytes:
        """The fixed part of a request; fields that are not named are zero, a `uid` that has no field is left out."""
        request = self.commands[command].request
        if "uid" in fields and not _has_uid(request):
            del fields["uid"]
        return pack(request, **fields)

    def uid(self, number: int) -> int:
        """The uid of the graph that this side calls `number`, which is not 0."""
        return number if _has_uid(self.commands[C.GRAPH_COMPUTE].request) else THE_ONLY_UID

    def uid_in(self, request: Record) -> int:
        """The uid that a GRAPH_COMPUTE or GRAPH_RECOMPUTE names; 0: not to be kept."""
        return int(request["uid"][0]) if _has_uid(request.dtype) else THE_ONLY_UID


def _has_uid(request: Layout) -> bool:
    return "uid" in (request.names or ())


V7 = Protocol(Version(7, 0, 0), _COMMANDS_7, max_graphs=1)
V8 = Protocol(Version(8, 0, 0), _COMMANDS_8, max_graphs=1024)
PROTOCOLS = (V7, V8)
NEWEST = V8
assert len(V7.commands) == 18 and set(V8.commands) == set(Command)
# HELLO, which tells the version, is the same in all
assert all(p[C.HELLO] == Message(HELLO, HELLO_REPLY) for p in PROTOCOLS)


def unpack(dtype: Layout, body: bytes | bytearray | memoryview) -> Record:
    """`body` seen as one record. Its length was checked by whoever framed it."""
    assert len(body) == dtype.itemsize, (len(body), dtype)
    if not dtype.itemsize:
        return np.zeros(1, dtype)
    return np.frombuffer(body, dtype, 1)


def pack(dtype: Layout, **fields: Any) -> bytes:
    """One record as bytes; fields that are not named are zero."""
    record = np.zeros(1, dtype)
    for name, value in fields.items():
        record[name] = value
    return record.tobytes()


def pack_header(command: Command, length: int) -> bytes:
    """The nine bytes in front of a request."""
    return int(command).to_bytes(1, "little") + length.to_bytes(8, "little")


def read_header(received: memoryview, at: int) -> tuple[int, int]:
    """Command number and length from the nine bytes there."""
    return received[at], int.from_bytes(received[at + 1 : at + 9], "little")
