"""Captures what a stock client and a stock server say to each other, as golden files: `python tests/support/capture.py`.

Owns the recording proxy and the session that is recorded.

Written to tests/rpc/golden: `session.requests.bin` and `session.replies.bin`, the two directions of the one long
connection, bytes as they came; `short.requests.bin` and `short.replies.bin`, those of all short ones before it, one after
the other (each begins with HELLO). Those are of 7.0.0; `newest` is a connection of 8.0.0, and `split` one to the first of two
servers that have each half of every tensor.
"""

import contextlib
import socket
import sys
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

GOLDEN = Path(__file__).parents[1] / "rpc" / "golden"


class Proxy:
    """Listens on a free port and passes everything on to `target`; keeps both directions of each connection."""

    def __init__(self, target: str) -> None:
        host, port = target.split(":")
        self.target = host, int(port)
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"127.0.0.1:{self.sock.getsockname()[1]}"
        self.connections: list[tuple[bytearray, bytearray]] = []  # (requests, replies)
        self.threads = [threading.Thread(target=self._accept, daemon=True)]
        self.threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.sock.accept()
            except OSError:
                return
            server = socket.create_connection(self.target)
            kept = bytearray(), bytearray()
            self.connections.append(kept)
            for source, sink, copy in ((client, server, kept[0]), (server, client, kept[1])):
                self.threads.append(threading.Thread(target=_pass_on, args=(source, sink, copy), daemon=True))
                self.threads[-1].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()
        for thread in self.threads:
            thread.join(10)


def _pass_on(source: socket.socket, sink: socket.socket, copy: bytearray) -> None:
    source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            copy += data
            sink.sendall(data)
    for sock in (source, sink):
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


def oldest(model: Path) -> None:
    from peer import Peer
    from peer_build import ensure_peer

    peer = Peer(*ensure_peer())
    steps = [("open", "a"), ("decode", "a", [3, 14, 15]), ("decode", "a", [92]), ("decode", "a", [65]), ("free", "a")]
    steps += [("open", "b", {"flash_attn_type": 1}), ("decode", "b", [35, 89]), ("decode", "b", [79])]
    with peer.rpc_server() as stock, Proxy(stock.endpoint) as proxy:
        peer.steps(model, steps, endpoints=[proxy.endpoint], n_ctx=256, n_batch=8)
    *short, session = proxy.connections
    keep("session", [session])
    keep("short", short)


def newest(model: Path) -> None:
    from peer_programs import ensure_programs
    from programs import Newest

    newest = Newest(ensure_programs())
    bench = ("-m", model, "-p", 5, "-n", 3, "-r", 1, "-t", 1, "-ngl", 99, "--no-warmup", "-rpc")
    with newest.rpc_server() as stock, Proxy(stock.endpoint) as proxy:
        newest.run("llama-bench", *bench, proxy.endpoint)
    keep("newest", proxy.connections)
    with (
        newest.rpc_server() as one,
        newest.rpc_server() as two,
        Proxy(one.endpoint) as first,
        Proxy(two.endpoint) as second,
    ):
        newest.run("llama-bench", *bench, f"{first.endpoint},{second.endpoint}", "-sm", "tensor")
    keep("split", first.connections)


def keep(name: str, connections: list[tuple[bytearray, bytearray]]) -> None:
    GOLDEN.mkdir(exist_ok=True)
    for i, direction in enumerate(("requests", "replies")):
        (GOLDEN / f"{name}.{direction}.bin").write_bytes(b"".join(bytes(c[i]) for c in connections))


def main() -> None:
    from tiny_model import write_llama

    small = {"n_layer": 1, "n_embd": 32, "n_head": 2, "n_head_kv": 1, "head_k": 16, "head_v": 16, "n_ff": 32}
    even = {**small, "n_embd": 64, "n_head": 4, "n_head_kv": 2, "n_ff": 64}  # what can be halved
    with tempfile.TemporaryDirectory() as folder:
        for capture, sizes in ((oldest, small), (newest, even)):
            if sys.argv[1:] in ([], [capture.__name__]):
                capture(write_llama(Path(folder) / f"{capture.__name__}.gguf", **sizes))  # type: ignore[arg-type]


if __name__ == "__main__":
    sys.exit(main())
