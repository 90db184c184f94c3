"""Captures what a stock client and a stock server say to each other, as golden files: `python tests/support/capture.py`.

Owns the recording proxy and the session that is recorded; must not know what the bytes mean.

Written to tests/rpc/golden: `session.requests.bin` and `session.replies.bin`, the two directions of the one long
connection, bytes as they came; `short.requests.bin` and `short.replies.bin`, those of all short ones before it, one after
the other (each begins with HELLO).
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


def main() -> None:
    from peer import Peer
    from peer_build import ensure_peer
    from tiny_model import write_llama

    peer = Peer(*ensure_peer())
    steps = [("open", "a"), ("decode", "a", [3, 14, 15]), ("decode", "a", [92]), ("decode", "a", [65]), ("free", "a")]
    steps += [("open", "b", {"flash_attn_type": 1}), ("decode", "b", [35, 89]), ("decode", "b", [79])]
    sizes = {"n_layer": 1, "n_embd": 32, "n_head": 2, "n_head_kv": 1, "head_k": 16, "head_v": 16, "n_ff": 32}
    with tempfile.TemporaryDirectory() as folder:
        model = write_llama(Path(folder) / "golden.gguf", **sizes)  # type: ignore[arg-type]
        with peer.rpc_server() as stock, Proxy(stock.endpoint) as proxy:
            peer.steps(model, steps, endpoints=[proxy.endpoint], n_ctx=256, n_batch=8)
    *short, session = proxy.connections
    GOLDEN.mkdir(exist_ok=True)
    parts = {"session": [session], "short": short}
    for name, connections in parts.items():
        for i, direction in enumerate(("requests", "replies")):
            (GOLDEN / f"{name}.{direction}.bin").write_bytes(b"".join(bytes(c[i]) for c in connections))


if __name__ == "__main__":
    sys.exit(main())
