"""Clients that make a server take all the memory that it lends, in every way, again and again; and what it then has.

Frames are of 8.0.0. A client is greeted, does a few things, and hangs up in the middle of whatever it is or when it was refused.
"""

import collections
import contextlib
import random
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from pyggml_rpc.wire import NEWEST, TENSOR, Command, Record, pack_header

from pyggml.dtypes import GGMLType
from pyggml.ops import Op
from pyggml.tensor import pack_params

C = Command
MIB = 1 << 20
WAIT = 20.0  # seconds for an answer


def resident_of(pid: int) -> int:
    """Bytes of a process that are in memory."""
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096


class RawClient:
    """`size` bytes lent, if the server had as many; `rng` decides the rest."""

    def __init__(self, endpoint: str, rng: random.Random, size: int = 1 << 16) -> None:
        host, _, port = endpoint.rpartition(":")
        self.rng = rng
        self.sock = socket.create_connection((host, int(port)), WAIT)
        self.ask(C.HELLO, bytes(24))
        self.handle, self.base = self.alloc(size)

    def tell(self, command: Command, body: bytes) -> None:
        self.sock.sendall(pack_header(command, len(body)) + body)

    def read(self, size: int) -> bytes:
        received = bytearray()
        while len(received) < size:
            part = self.sock.recv(size - len(received))
            if not part:
                raise EOFError
            received += part
        return bytes(received)

    def ask(self, command: Command, body: bytes = b"") -> bytes:
        self.tell(command, body)
        return self.read(int.from_bytes(self.read(8), "little"))

    def alloc(self, size: int) -> tuple[int, int]:
        """(handle, base address); (0, 0) when there was no room."""
        handle = int.from_bytes(self.ask(C.ALLOC_BUFFER, NEWEST.pack(C.ALLOC_BUFFER, size=size))[:8], "little")
        if not handle:
            return 0, 0
        return handle, int.from_bytes(self.ask(C.BUFFER_GET_BASE, handle.to_bytes(8, "little")), "little")

    def compute(self, nodes: "np.ndarray[tuple[int], np.dtype[np.uint64]]", records: Record) -> None:
        """And wait until it is done, or the server has hung up."""
        head = NEWEST.pack(C.GRAPH_COMPUTE, uid=1, n_nodes=len(nodes)) + nodes.astype("<u8").tobytes()
        self.tell(C.GRAPH_COMPUTE, head + len(records).to_bytes(4, "little") + records.tobytes())
        self.ask(C.DEVICE_COUNT)

    def records(self, n: int, **fields: object) -> Record:
        """Tensors of one F32 number in the client's first buffer, ids from 1 on."""
        records = np.zeros(n, TENSOR)
        records["id"], records["ne"], records["nb"] = np.arange(1, n + 1), 1, 4
        records["buffer"], records["data"], records["flags"] = self.handle, self.base, 16
        for name, value in fields.items():
            records[name] = value
        return records


# ---- what they do


def fill(client: RawClient, limit: int) -> None:
    """A buffer, written to its end."""
    handle, _ = client.alloc(int(limit * client.rng.choice((0.001, 0.01, 0.1, 0.5, 0.9))))
    if handle:
        client.tell(C.BUFFER_CLEAR, NEWEST.pack(C.BUFFER_CLEAR, remote_ptr=handle, value=7))
        client.ask(C.DEVICE_COUNT)


def many_buffers(client: RawClient, limit: int) -> None:
    for _ in range(200):
        client.alloc(client.rng.randrange(1 << 16))


def empty_buffers(client: RawClient, limit: int) -> None:
    body = NEWEST.pack(C.ALLOC_BUFFER)
    for _ in range(1000):
        client.tell(C.ALLOC_BUFFER, body)
    client.read(1000 * 24)


def large_graph(client: RawClient, limit: int) -> None:
    n = client.rng.choice((2000, 10_000, limit >> 14))
    records = client.records(n)
    records["data"][1:] = client.base + 16 + 4 * (np.arange(1, n) % 10_000)
    records["op"][1:], records["src"][1:, 0] = int(Op.DUP), 1
    client.compute(np.arange(2, n + 1), records)


def meaningless_records(client: RawClient, limit: int) -> None:
    """That no node needs."""
    client.compute(np.zeros(0, np.uint64), client.records(min(limit >> 12, 200_000)))


def half_a_graph(client: RawClient, limit: int) -> None:
    client.sock.sendall(pack_header(C.GRAPH_COMPUTE, 1 << 26) + bytes(client.rng.randrange(1 << 26)))
    time.sleep(client.rng.random())
    raise EOFError


def work_memory(client: RawClient, limit: int) -> None:
    """A node whose tables are large and whose operands, of zero strides, are not."""
    n = limit // client.rng.choice((1 << 8, 1 << 10, 1 << 12))
    handle, base = client.alloc(128 * n + 4096)
    if not handle:
        return
    records = client.records(3, buffer=handle, data=base)
    records["ne"][0], records["nb"][0] = (32, 1, n, 1), (4, 0, 0, 0)
    records["type"][1], records["ne"][1], records["nb"][1] = GGMLType.I32, (n, 1, 1, 1), (4, 0, 0, 0)
    records["nb"][1] = 0
    records["ne"][2], records["nb"][2] = (32, 1, n, 1), (4, 128, 128, 128 * n)
    records["data"][2], records["op"][2], records["src"][2, :2] = base + 4096, int(Op.ROPE), (1, 2)
    records["op_params"][2] = pack_params("5i6f", 0, 32, 0, 0, 0, 10000.0, 1.0, 0.0, 1.0, 32.0, 1.0)
    client.compute(np.array([3]), records)


def unread_answers(client: RawClient, limit: int) -> None:
    size = limit >> 6
    handle, base = client.alloc(size)
    if handle:
        whole = client.records(1, buffer=handle, data=base, type=GGMLType.I8)
        whole["ne"][0], whole["nb"][0] = (size, 1, 1, 1), (1, size, size, size)
        for _ in range(20):
            client.tell(C.GET_TENSOR, NEWEST.pack(C.GET_TENSOR, tensor=whole, size=size))
    time.sleep(client.rng.random())
    raise EOFError


DEEDS: tuple[Callable[[RawClient, int], None], ...] = (
    *(fill, many_buffers, empty_buffers, large_graph, meaningless_records, half_a_graph, work_memory, unread_answers),
)


@dataclass
class Tally:
    """What was done, bytes in memory before and at most, and what went wrong on this side."""

    before: int = 0
    most: int = 0
    done: collections.Counter[str] = field(default_factory=collections.Counter)


def _one(endpoint: str, rng: random.Random, limit: int, tally: Tally) -> None:
    client = None
    try:
        client = RawClient(endpoint, rng)
        for _ in range(rng.randrange(1, 6)):
            deed = rng.choice(DEEDS)
            deed(client, limit)
            tally.done[deed.__name__] += 1
    except (OSError, EOFError):
        tally.done["hung up"] += 1
    finally:
        if client is not None:
            if rng.random() < 0.5:  # without a word
                with contextlib.suppress(OSError):
                    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.sock.close()


def run(endpoint: str, pid: int, limit: int, seconds: float, seed: int, n_clients: int = 8) -> Tally:
    """So many at once, for so long, at a server that lends `limit` bytes."""
    tally, until = Tally(before=resident_of(pid)), time.monotonic() + seconds

    def work(number: int) -> None:
        rng = random.Random(seed + number)
        while time.monotonic() < until:
            _one(endpoint, rng, limit, tally)

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(n_clients)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        tally.most = max(tally.most, resident_of(pid))
        time.sleep(0.01)
    return tally
