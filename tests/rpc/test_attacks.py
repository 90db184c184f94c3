"""What is publicly known to have broken RPC servers of this protocol, one attack each, over real sockets.

Each must end in a closed connection and one line in the server's log that says why, while another client goes on
working. The names are those of the public reports.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from pyggml_rpc.client import Client
from pyggml_rpc.errors import RpcError
from pyggml_rpc.server import Server
from pyggml_rpc.transport import Listener
from pyggml_rpc.wire import MAX_SRC, NEWEST, Command, pack_header

from pyggml.backend.reference import ReferenceDevice
from pyggml.dtypes import GGMLType
from pyggml.ops import Op
from pyggml.tensor import pack_params

C = Command
SIZE = 4096


@pytest.fixture(scope="module")
def listener() -> Iterator[Listener]:
    with Listener(Server([ReferenceDevice()]), port=0) as listener:
        yield listener


class Attacker:
    """A client without manners, with one buffer of 4096 bytes."""

    def __init__(self, listener: Listener, kit: Any) -> None:
        self.kit = kit
        self.client = Client(listener.endpoint, 5, 5, 20)
        self.handle, self.base = self.alloc(SIZE)

    def alloc(self, size: int) -> tuple[int, int]:
        handle = int(self.ask(C.ALLOC_BUFFER, device=0, size=size)["remote_ptr"][0])
        return handle, int(self.ask(C.BUFFER_GET_BASE, remote_ptr=handle)["base_ptr"][0])

    def ask(self, command: Command, into: memoryview | None = None, **fields: Any) -> Any:
        return self.client.ask(command, NEWEST.pack(command, **fields), into)

    def tell(self, command: Command, **fields: Any) -> None:
        self.client.tell(command, NEWEST.pack(command, **fields))

    def get(self, tensor: Any, size: int, offset: int = 0) -> bytes:
        memory = bytearray(size)
        body = NEWEST.pack(C.GET_TENSOR, tensor=tensor, offset=offset, size=size)
        self.client.ask(C.GET_TENSOR, body, memoryview(memory))
        return bytes(memory)

    def set(self, tensor: Any, data: bytes, offset: int = 0) -> None:
        body = NEWEST.pack(C.SET_TENSOR, tensor=tensor, offset=offset)
        self.client.tell(C.SET_TENSOR, body, data)

    def compute(self, nodes: list[int], tensors: list[Any]) -> None:
        self.client.tell(C.GRAPH_COMPUTE, self.kit.graph_body(nodes, tensors))

    def here(self, ne: tuple[int, ...] = (4,), dtype: int = GGMLType.F32, at: int = 0, **fields: Any) -> Any:
        """A tensor in the attacker's own buffer."""
        return self.kit.record(ne, dtype, **{"buffer": self.handle, "data": self.base + at, **fields})

    def node(self, op: int, src: list[Any], ne: tuple[int, ...] = (4,), at: int = 2048, **fields: Any) -> None:
        """Compute one node; the sources get ids 1, 2 ..."""
        for number, source in enumerate(src, 1):
            source["id"] = number
        ids = [*range(1, len(src) + 1), *[0] * (MAX_SRC - len(src))]
        node = self.here(ne, at=at, id=99, op=op, flags=16, src=ids, **fields)
        self.compute([99], [*src, node])


@pytest.fixture
def attacker(listener: Listener, kit: Any) -> Iterator[Attacker]:
    attacker = Attacker(listener, kit)
    yield attacker
    attacker.client.close()


@pytest.fixture
def bystander(listener: Listener, kit: Any) -> Iterator[Callable[[], float]]:
    """Another client with a graph of its own: a call runs it."""
    client = Attacker(listener, kit)
    a, b = client.here(), client.here(at=64)
    client.set(a, np.array([1, 2, 3, 4], "<f4").tobytes())
    client.set(b, np.array([10, 20, 30, 40], "<f4").tobytes())
    client.node(Op.ADD, [a, b])

    def work() -> float:
        client.tell(C.GRAPH_RECOMPUTE, device=0, uid=1)
        return float(np.frombuffer(client.get(client.here(at=2048), 16), "<f4").sum())

    assert work() == 110
    yield work
    client.client.close()


Attack = Callable[[Attacker], object]

ATTACKS: dict[str, tuple[str, Attack]] = {}
"""name -> (what the log says, the attack)."""


def attack(name: str, log: str) -> Callable[[Attack], Attack]:
    def register(function: Attack) -> Attack:
        assert name not in ATTACKS
        ATTACKS[name] = log, function
        return function

    return register


# ---- with identifiers

BAD_TYPES = [4, 5, 31, 36, 43, 1000, 2**31, 2**32 - 1]
for _type in BAD_TYPES:
    attack(f"CVE-2024-42477 SET_TENSOR type {_type}", f"unknown type {_type}")(
        lambda a, t=_type: a.set(a.here(dtype=t), b"abcd")
    )
attack("CVE-2024-42477 GET_TENSOR", "unknown type 77")(lambda a: a.get(a.here(dtype=77), 4))
attack("CVE-2024-42477 GRAPH_COMPUTE", "unknown type 77")(lambda a: a.node(Op.ADD, [a.here(dtype=77), a.here()]))
attack("CVE-2024-42477 GET_ALLOC_SIZE", "unknown type 77")(
    lambda a: a.ask(C.GET_ALLOC_SIZE, device=0, tensor=a.here(dtype=77))
)
attack("CVE-2024-42477 GET_ALLOC_SIZE source", "unknown type 77")(
    lambda a: a.ask(
        C.GET_ALLOC_SIZE, device=0, tensor=a.here(), srcs=np.concatenate([a.here(dtype=77, id=1)] * MAX_SRC)
    )
)
attack("CVE-2024-42477 INIT_TENSOR", "unknown type 77")(lambda a: a.tell(C.INIT_TENSOR, tensor=a.here(dtype=77)))
attack("CVE-2024-42477 COPY_TENSOR", "unknown type 77")(
    lambda a: a.ask(C.COPY_TENSOR, src=a.here(dtype=77), dst=a.here())
)

FAR = {"0": 0, "1": 1, "before": -1, "before 64": -64, "end": SIZE - 15, "behind": SIZE + 64, "top": 2**64 - 16}
for _name, _at in FAR.items():
    _data = (lambda a, at=_at: at) if _name in ("0", "1", "top") else (lambda a, at=_at: a.base + at)
    attack(f"CVE-2024-42478 GET_TENSOR data {_name}", "lie outside a buffer of 4096|no buffer of")(
        lambda a, d=_data: a.get(a.here(data=d(a)), 16)
    )
    attack(f"CVE-2024-42479 SET_TENSOR data {_name}", "lie outside a buffer of 4096|no buffer of")(
        lambda a, d=_data: a.set(a.here(data=d(a)), bytes(16))
    )
    attack(f"CVE-2024-42479 MEMSET_TENSOR data {_name}", "lie outside a buffer of 4096|no buffer of")(
        lambda a, d=_data: a.tell(C.MEMSET_TENSOR, tensor=a.here(data=d(a)), size=16, value=1)
    )
for _offset in (1, 16, SIZE, 2**63, 2**64 - 1, 2**64 - 16):
    attack(f"CVE-2024-42478 GET_TENSOR offset {_offset}", "bytes at offset")(
        lambda a, o=_offset: a.get(a.here(), 16, offset=o)
    )
    attack(f"CVE-2024-42479 SET_TENSOR offset {_offset}", "bytes at offset")(
        lambda a, o=_offset: a.set(a.here(), bytes(16), offset=o)
    )
    attack(f"SET_TENSOR_HASH offset {_offset}", "bytes at offset")(
        lambda a, o=_offset: a.ask(C.SET_TENSOR_HASH, tensor=a.here(), offset=max(o, 17), hash=1)
    )
    attack(f"MEMSET_TENSOR offset {_offset}", "bytes at offset")(
        lambda a, o=_offset: a.tell(C.MEMSET_TENSOR, tensor=a.here(), offset=o, size=16)
    )
attack("CVE-2024-42478 GET_TENSOR size 2^64-1", f"{2**64 - 1} bytes at offset 0 of 16")(
    lambda a: _get_of_any_size(a, 2**64 - 1)
)


def _get_of_any_size(a: Attacker, size: int) -> None:
    a.client.ask(C.GET_TENSOR, NEWEST.pack(C.GET_TENSOR, tensor=a.here(), size=size), memoryview(bytearray(1)))


for _buffer in (0, 12345):
    attack(f"CVE-2026-34159 source with buffer {_buffer}", "data 0x[0-9a-f]+ in no buffer of this connection")(
        lambda a, b=_buffer: a.node(Op.ADD, [a.here(buffer=b), a.here()])
    )
    attack(f"CVE-2026-34159 result with buffer {_buffer}", "data 0x[0-9a-f]+ in no buffer of this connection")(
        lambda a, b=_buffer: a.node(Op.ADD, [a.here(), a.here()], buffer=b)
    )
    attack(f"CVE-2026-34159 real address, buffer {_buffer}", "in no buffer of this connection")(
        lambda a, b=_buffer: a.node(Op.ADD, [a.here(buffer=b, data=0x7F0000000000), a.here()])
    )
attack("CVE-2026-34159 source that lives nowhere", "source 0, '', is in no buffer here")(
    lambda a: a.node(Op.ADD, [a.here(buffer=0, data=0), a.here()])
)
attack("CVE-2026-34159 result that lives nowhere", "it is in no buffer here")(
    lambda a: a.node(Op.ADD, [a.here(), a.here()], buffer=0, data=0)
)


@attack("GHSA-2phh-px2f-2qmx recompute after free", "no graph is kept for device 0 with uid 1")
def _use_after_free(a: Attacker) -> None:
    a.node(Op.ADD, [a.here(), a.here(at=64)])
    a.tell(C.FREE_BUFFER, remote_ptr=a.handle)
    a.tell(C.GRAPH_RECOMPUTE, device=0, uid=1)


@attack("GHSA-2phh-px2f-2qmx source's buffer freed", "no graph is kept for device 0 with uid 1")
def _use_after_free_of_a_source(a: Attacker) -> None:
    handle, base = a.alloc(64)
    a.node(Op.ADD, [a.here(), a.here(buffer=handle, data=base)])
    a.tell(C.FREE_BUFFER, remote_ptr=handle)
    a.tell(C.GRAPH_RECOMPUTE, device=0, uid=1)


@attack("GHSA-2phh-px2f-2qmx tensor of a freed buffer", "in no buffer of this connection")
def _get_after_free(a: Attacker) -> None:
    a.tell(C.FREE_BUFFER, remote_ptr=a.handle)
    a.get(a.here(), 16)


@attack("double free", "is not a buffer of this connection")
def _double_free(a: Attacker) -> None:
    a.tell(C.FREE_BUFFER, remote_ptr=a.handle)
    a.tell(C.FREE_BUFFER, remote_ptr=a.handle)


@attack("ggml#1103 COPY_TENSOR into a smaller tensor", "4096 bytes of '' do not fit in the 16 of ''")
def _copy_overflow(a: Attacker) -> None:
    handle, base = a.alloc(16)
    a.ask(C.COPY_TENSOR, src=a.here((1024,)), dst=a.here(buffer=handle, data=base))


@attack("ggml#1103 COPY_TENSOR past the end of the buffer", "4096 bytes at offset 16 lie outside")
def _copy_past_the_end(a: Attacker) -> None:
    a.ask(C.COPY_TENSOR, src=a.here((1024,)), dst=a.here((1024,), at=16))


# ---- public reports without an identifier

attack("#13067 SET_TENSOR with an invalid type", "unknown type 39999")(lambda a: a.set(a.here(dtype=39999), b"abcd"))
for _buffer in (0, 1, 2**64 - 1):
    _log = "no buffer of this connection"
    attack(f"#14868 SET_TENSOR buffer {_buffer}", _log)(lambda a, b=_buffer: a.set(a.here(buffer=b), b"abcd"))
    attack(f"#14868 SET_TENSOR buffer {_buffer} data 0", _log)(
        lambda a, b=_buffer: a.set(a.here(buffer=b, data=0), b"abcd")
    )
    attack(f"#14868 GET_TENSOR buffer {_buffer}", _log)(lambda a, b=_buffer: a.get(a.here(buffer=b, data=0), 4))
    attack(f"#14868 SET_TENSOR_HASH buffer {_buffer}", _log)(
        lambda a, b=_buffer: a.ask(C.SET_TENSOR_HASH, tensor=a.here(buffer=b, data=0), hash=1)
    )
    attack(f"#14868 COPY_TENSOR from buffer {_buffer}", _log)(
        lambda a, b=_buffer: a.ask(C.COPY_TENSOR, src=a.here(buffer=b, data=0), dst=a.here())
    )
    attack(f"#14868 COPY_TENSOR to buffer {_buffer}", _log)(
        lambda a, b=_buffer: a.ask(C.COPY_TENSOR, src=a.here(), dst=a.here(buffer=b, data=0))
    )
    attack(f"#14868 MEMSET_TENSOR buffer {_buffer}", _log)(
        lambda a, b=_buffer: a.tell(C.MEMSET_TENSOR, tensor=a.here(buffer=b, data=0), size=4)
    )
    for _command in (C.FREE_BUFFER, C.BUFFER_CLEAR, C.BUFFER_GET_BASE):
        attack(f"#14868 {_command.name} of {_buffer}", "is not a buffer of this connection")(
            lambda a, c=_command, b=_buffer: (a.ask if c is C.BUFFER_GET_BASE else a.tell)(c, remote_ptr=b)
        )


def _send(a: Attacker, data: bytes) -> None:
    assert a.client._wire is not None
    a.client.flush()
    a.client._wire.send([data], lambda: 5.0)


for _command in (C.GRAPH_COMPUTE, C.GET_TENSOR, C.HELLO, C.ALLOC_BUFFER, C.DEVICE_COUNT):
    for _length in (2**64 - 1, 2**63, 2**40):
        attack(f"Rohlf: {_command.name} of {_length} bytes", f"of {_length} bytes, not|second HELLO")(
            lambda a, c=_command, n=_length: _send(a, pack_header(c, n))
        )
attack("Rohlf: SET_TENSOR of 2^64-1 bytes", "bytes at offset 0 of 16")(
    lambda a: _send(a, pack_header(C.SET_TENSOR, 2**64 - 1) + NEWEST.pack(C.SET_TENSOR, tensor=a.here()))
)
attack("Rohlf: SET_TENSOR of 304 bytes", "at least 305")(lambda a: _send(a, pack_header(C.SET_TENSOR, 304)))
attack("GET_TENSOR_2D whose reply has no end", "0 bytes apart: they overlap")(
    lambda a: a.ask(C.GET_TENSOR_2D, tensor=a.here(), size=1, n_copies=2**63, into=memoryview(bytearray(1)))
)
attack("SET_TENSOR_2D beyond the tensor, inside the buffer", "20 bytes at offset 0 of 16")(
    lambda a: a.client.tell(
        C.SET_TENSOR_2D, NEWEST.pack(C.SET_TENSOR_2D, tensor=a.here(), size=4, n_copies=2, stride=16), bytes(8)
    )
)
attack("COMM_ALLREDUCE without a communicator", "device 0 has no communicator")(
    lambda a: a.tell(C.COMM_ALLREDUCE, tensor=a.here())
)
attack("unknown command", "unknown command 23")(lambda a: _send(a, bytes([23]) + bytes(8)))

for _name, _call in {
    "SET_TENSOR": lambda a, t: a.set(t, b"abcd"),
    "GET_TENSOR": lambda a, t: a.get(t, 4),
    "INIT_TENSOR": lambda a, t: a.tell(C.INIT_TENSOR, tensor=t),
    "GET_ALLOC_SIZE": lambda a, t: a.ask(C.GET_ALLOC_SIZE, device=0, tensor=t),
    "COPY_TENSOR": lambda a, t: a.ask(C.COPY_TENSOR, src=t, dst=a.here()),
    "GRAPH_COMPUTE": lambda a, t: a.node(Op.ADD, [t, a.here()]),
}.items():
    attack(f"#25288 {_name} of a part of a block", "row length 1 is not a multiple of the block size 32")(
        lambda a, call=_call: call(a, a.here((1,), GGMLType.Q4_0, nb=[18, 18, 18, 18]))
    )
for _op in (Op.MAP_CUSTOM1, Op.MAP_CUSTOM2, Op.MAP_CUSTOM3, Op.CUSTOM):
    attack(f"#25289 {_op.name}", f"op {_op.name} is not implemented")(
        lambda a, op=_op: a.node(op, [a.here(), a.here()], op_params=pack_params("q", 0x4141414141414141))
    )
for _op_number in (101, 2**31, 2**32 - 1):
    attack(f"op number {_op_number}", f"number {_op_number} is not implemented")(
        lambda a, op=_op_number: a.node(op, [a.here(), a.here()])
    )
attack("#25299 node id 0", "node 0x0 is not among the 0 tensors")(lambda a: a.compute([0], []))
attack("#25299 node id 0 with a tensor of id 0", "one is 0")(lambda a: a.compute([0], [a.here(id=0)]))
attack("node that is not there", "node 0x5 is not among the 1 tensors")(lambda a: a.compute([5], [a.here()]))
attack("source that is not there", "source 0, 0x7, is not among the 1 tensors")(
    lambda a: a.compute([1], [a.here(op=Op.ADD, flags=16, src=[7] + [0] * 9)])
)
attack("two tensors of one id", "2 tensors have 1 different ids")(lambda a: a.compute([1], [a.here(), a.here()]))
attack("a node twice", "a node is listed twice among 2")(lambda a: a.compute([1, 1], [a.here()]))
attack("n_nodes beyond the body", "4294967295 nodes do not fit in 20 bytes")(
    lambda a: a.client.tell(C.GRAPH_COMPUTE, bytes(12) + b"\xff\xff\xff\xff\0\0\0\0")
)
attack("n_tensors beyond the body", "0 nodes and 4294967295 tensors do not make 20 bytes")(
    lambda a: a.client.tell(C.GRAPH_COMPUTE, bytes(16) + b"\xff\xff\xff\xff")
)
attack("bytes behind the graph", "0 nodes and 0 tensors do not make 21 bytes")(
    lambda a: a.client.tell(C.GRAPH_COMPUTE, bytes(21))
)
attack("a node that is its own source", "2 of 2 sources given|sources|COMPUTE")(
    lambda a: a.compute([1], [a.here(op=Op.RMS_NORM, flags=16, src=[1, 1] + [0] * 8)])
)
attack("#25704 GATED_DELTA_NET with a K parameter", "GATED_DELTA_NET|op_params|sources")(
    lambda a: a.node(Op.GATED_DELTA_NET, [a.here() for _ in range(6)], op_params=pack_params("i", -(2**31)))
)
for _op in (Op.ACC, Op.SET):
    attack(f"#25764 {_op.name} with negative strides", _op.name)(
        lambda a, op=_op: a.node(
            op, [a.here((16,)), a.here((2, 2))], (16,), op_params=pack_params("5i", -64, 64, 4, 0, 0)
        )
    )
attack("#25765 SSM_SCAN with ids out of range", "SSM_SCAN")(
    lambda a: a.node(Op.SSM_SCAN, [a.here((4, 4)) for _ in range(6)] + [a.here((1,), GGMLType.I32)])
)
attack("#26825 GET_ROWS over-read", "GET_ROWS: batches differ")(
    lambda a: a.node(Op.GET_ROWS, [a.here((4, 2)), a.here((1, 9), GGMLType.I32)], (4, 1, 9))
)
attack("#26912 SET_ROWS controlled overwrite", "SET_ROWS: source and destination differ in shape")(
    lambda a: a.node(
        Op.SET_ROWS,
        [a.here((4, 1, 2)), a.here((1,), GGMLType.I64), a.here((4, 2), at=64, nb=[4, 16, 2**31, 2**31])],
        (4, 2),
        at=64,
        nb=[4, 16, 2**31, 2**31],
    )
)
for _p0, _p1 in ((-8, 0), (0, 2**31 - 1), (100, 100)):
    attack(f"PAD_REFLECT_1D {_p0} {_p1}", "PAD_REFLECT_1D")(
        lambda a, p=(_p0, _p1): a.node(Op.PAD_REFLECT_1D, [a.here()], op_params=pack_params("ii", *p))
    )


# ---- paths on which a reference server still aborts

attack("data + size wraps around", "lie outside a buffer of 4096")(
    lambda a: a.set(a.here((2**30, 4), data=2**64 - 16), b"abcd")
)
attack("nbytes wraps around", "lie outside a buffer of 4096")(lambda a: a.get(a.here((2**32 - 1,) * 4), 16))
attack("strides beyond the buffer", "lie outside a buffer of 4096")(
    lambda a: a.get(a.here((4, 2), nb=[4, 2**31, 0, 0]), 16)
)
attack("elements that share bytes", "bytes of elements in a buffer of 4096")(
    lambda a: a.node(Op.CONT, [a.here((2**31, 2**31), nb=[0, 0, 0, 0])], (2**31, 2**31), nb=[0, 0, 0, 0])
)
attack("odd address", "is not a multiple of 4")(lambda a: a.get(a.here(at=2), 16))
attack("odd stride", "is not a multiple of 4")(lambda a: a.get(a.here((2, 2), nb=[4, 9, 0, 0]), 16))
attack("blocks that overlap", "blocks are 1 bytes apart, not 18")(
    lambda a: a.get(a.here((64,), GGMLType.Q4_0, nb=[1, 36, 36, 36]), 16)
)
attack("GET_TENSOR beyond the tensor, inside the buffer", "17 bytes at offset 0 of 16")(lambda a: a.get(a.here(), 17))
attack("SET_TENSOR beyond the tensor, inside the buffer", "17 bytes at offset 0 of 16")(
    lambda a: a.set(a.here(), bytes(17))
)
attack("row number out of range", "GET_ROWS.*row|row.*GET_ROWS")(
    lambda a: (
        a.set(a.here((1,), GGMLType.I32, at=512), (10**6).to_bytes(4, "little")),
        a.node(Op.GET_ROWS, [a.here((4, 2)), a.here((1,), GGMLType.I32, at=512)]),
    )
)
attack("negative row number", "SET_ROWS.*row|row.*SET_ROWS")(
    lambda a: (
        a.set(a.here((1,), GGMLType.I64, at=512), b"\xff" * 8),
        a.node(
            Op.SET_ROWS, [a.here((4,)), a.here((1,), GGMLType.I64, at=512), a.here((4, 2), at=1024)], (4, 2), at=1024
        ),
    )
)


@pytest.mark.parametrize("name", ATTACKS)
def test_attack(
    name: str,
    attacker: Attacker,
    bystander: Callable[[], float],
    listener: Listener,
    caplog: pytest.LogCaptureFixture,
) -> None:
    log, function = ATTACKS[name]
    with pytest.raises(RpcError, match=r"server closed the connection|connection broke"):
        function(attacker)
        attacker.get(attacker.here(), 4)  # waits for what is computed
    assert bystander() == 110, "the other client is disturbed"
    (line,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert re.search(log, line), line
    assert "connection closed" in line and "\n" not in line


@pytest.mark.parametrize("name", [n for n in ATTACKS if n.startswith("CVE-2024-4247")][:3])
def test_an_attack_alone_is_what_is_refused(name: str, attacker: Attacker) -> None:
    """The attacker's ordinary requests are served: it is not for something else that it is turned away."""
    attacker.set(attacker.here(), b"abcd")
    attacker.node(Op.ADD, [attacker.here(), attacker.here(at=64)])
    assert attacker.get(attacker.here(), 4) == b"abcd"
    assert attacker.get(attacker.here(at=SIZE, ne=(0, 4)), 0) == b""  # no elements, at the end of the buffer


# ---- what is not a closed connection


def test_14882_no_address_is_told(listener: Listener, attacker: Attacker) -> None:
    """Handles are random and bases synthetic; neither is near anything that this process has mapped."""
    told = [attacker.alloc(SIZE) for _ in range(8)]
    assert len({h for h, _ in told} | {b for _, b in told}) == 16
    assert len({h >> 56 for h, _ in told}) > 2, "handles are not random"
    with open("/proc/self/maps") as maps:
        spans = [[int(x, 16) for x in line.split()[0].split("-")] for line in maps]
    assert not [b for _, b in told for low, high in spans if low <= b < high]


def test_a_buffer_belongs_to_its_connection(
    listener: Listener, kit: Any, attacker: Attacker, caplog: pytest.LogCaptureFixture
) -> None:
    thief = Attacker(listener, kit)
    attacker.set(attacker.here(), b"secret..")
    with pytest.raises(RpcError):
        thief.get(attacker.here(), 8)
    assert "in no buffer of this connection" in caplog.text
    assert attacker.get(attacker.here(), 8) == b"secret.."


def test_memory_of_the_dead_is_not_shown(listener: Listener, kit: Any, attacker: Attacker) -> None:
    for _ in range(5):
        first = Attacker(listener, kit)
        first.tell(C.BUFFER_CLEAR, remote_ptr=first.handle, value=83)
        first.get(first.here(), 4)
        first.client.close()
        handle, base = attacker.alloc(SIZE)
        assert not any(attacker.get(attacker.here((SIZE // 4,), buffer=handle, data=base), SIZE))


def test_9799_sizes_of_nothing(attacker: Attacker) -> None:
    """A zero dimension once made nbytes 2^64 - 24."""
    for ne in ((0,), (4, 0), (7, 1, 0, 3)):
        for at in (0, SIZE):
            empty = attacker.here(ne, at=at)
            assert attacker.get(empty, 0) == b""
            attacker.set(empty, b"")
    attacker.node(Op.ADD, [attacker.here((4, 0)), attacker.here()], (4, 0), at=SIZE)
    assert int(attacker.ask(C.GET_ALLOC_SIZE, device=0, tensor=attacker.here((4, 0)))["alloc_size"][0]) == 0
    attacker.client.ask(C.DEVICE_COUNT)


def test_endless_buffers_are_answered_with_none(attacker: Attacker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyggml_rpc.buffers.MAX_BUFFERS", 3)
    attacker.alloc(0)
    attacker.alloc(0)
    assert attacker.ask(C.ALLOC_BUFFER, device=0, size=0).tolist() == [(0, 0)]


def test_alloc_size_beyond_all_numbers(attacker: Attacker, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(RpcError):
        attacker.ask(C.GET_ALLOC_SIZE, device=0, tensor=attacker.here((2**32 - 1,) * 4, nb=[2**32 - 4] * 4))
        attacker.ask(C.GET_ALLOC_SIZE, device=0, tensor=attacker.here((2**32 - 1,) * 4))
    assert re.search(r"GET_ALLOC_SIZE: tensor '': \d{20,} bytes", caplog.text)


def test_the_attacks_find_a_server_that_does_not_look(
    attacker: Attacker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A mutant: tensors are taken to lie where they say."""

    def believe(tensor: Any, handle: int, data: int, lent: Any, _size: object) -> None:
        tensor.buffer = lent[handle].buffer
        tensor.data = tensor.buffer.base + data - lent[handle].base

    monkeypatch.setattr("pyggml_rpc.records._place", believe)
    log, function = ATTACKS["CVE-2024-42478 GET_TENSOR data end"]
    with pytest.raises(RpcError):
        function(attacker)
    assert not re.search(log, caplog.text) and "a fault of this server" in caplog.text
