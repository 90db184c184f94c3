"""Every byte layout of ggml's RPC protocol 7.0.0, and the one table of its commands.

Owns layouts and numbers; it must not know which side speaks. All integers are little-endian and nothing is padded.
Facts: ggml/include/ggml-rpc.h (version, conn_caps) and ggml/src/ggml-rpc/ggml-rpc.cpp (`rpc_cmd`, `rpc_tensor`,
`rpc_msg_*`).

    request   | command u8 | length u64 | body |
    reply     | length u64 | body |                  only of the commands that have one
"""

from enum import Enum, IntEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Version(NamedTuple):
    major: int
    minor: int
    patch: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"


PROTOCOL = Version(7, 0, 0)

Record = NDArray[np.void]  # one record is an array of shape (1,): a view of the bytes, not a copy
Layout = np.dtype[np.void]


def layout(size: int, *fields: tuple[Any, ...]) -> Layout:
    """A packed record of named fields whose total is asserted right where it is written."""
    dtype = np.dtype(list(fields))
    assert dtype.itemsize == size, (fields, dtype.itemsize)
    return dtype


class Command(IntEnum):
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


assert len(Command) == 18

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
MIN_GRAPH = GRAPH.itemsize + 4


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
COMMANDS: dict[Command, Message] = {
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
assert set(COMMANDS) == set(Command)


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
