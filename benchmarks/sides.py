"""Engines that wait for questions: a process each, with its model loaded.

`Side.seconds(kind, n)` answers how long something took there; both engines get the same loop around their own `decode`.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SUPPORT = Path(__file__).resolve().parent.parent / "tests" / "support"
sys.path.insert(0, str(SUPPORT))

from peer import Peer  # noqa: E402
from peer_build import PeerMissing, ensure_peer  # noqa: E402

OURS = """
import json, sys, time
from pyggml.runtime.context import Context
from pyggml.model.model import Model
p = json.loads(sys.argv[1])
devices = []
if p["endpoints"]:
    from pyggml_rpc.backend import devices_from_spec
    devices = devices_from_spec(",".join(p["endpoints"]))
model = Model.load(p["model"], devices=devices)
context = Context(model, n_ctx=p["n_ctx"], n_threads=p["n_threads"], flash_attn=p["flash_attn"])
def decode(tokens):
    context.decode(tokens)
def keep(n):
    context.truncate(n)
"""

STOCK = """
import ctypes, json, sys, time
import llama_cpp
p = json.loads(sys.argv[1])
if p["endpoints"]:
    from peer_worker import add_servers
    add_servers(p["endpoints"])
llama = llama_cpp.Llama(
    p["model"], n_ctx=p["n_ctx"], n_batch=2048, n_ubatch=512, n_threads=p["n_threads"],
    n_threads_batch=p["n_threads"], flash_attn=p["flash_attn"], verbose=False,
    n_gpu_layers=99 if p["endpoints"] else 0,
)
memory = llama_cpp.llama_get_memory(llama.ctx)
def decode(tokens):
    for i in range(0, len(tokens), 2048):  # it takes n_batch at most
        part = tokens[i : i + 2048]
        array = (llama_cpp.llama_token * len(part))(*part)
        code = llama_cpp.llama_decode(llama.ctx, llama_cpp.llama_batch_get_one(array, len(part)))
        assert code == 0, code
    llama_cpp.llama_synchronize(llama.ctx)
def keep(n):
    if n:
        llama_cpp.llama_memory_seq_rm(memory, -1, n, -1)
    else:
        llama_cpp.llama_memory_clear(memory, True)
"""

LOOP = """
filled = 0
def tokens_of(n, start=0):
    return [(100 + i * 7) % p["n_vocab"] for i in range(start, start + n)]
def run(kind, n, depth):
    global filled
    if filled != depth:  # what the tokens in question come after stays from round to round
        keep(0)
        if depth:
            decode(tokens_of(depth))
        filled = depth
    keep(depth)
    start = time.perf_counter()
    tokens = tokens_of(n, depth)
    for part in [tokens] if kind == "pp" else [[token] for token in tokens]:
        decode(part)
    return time.perf_counter() - start
print("ready", flush=True)
for line in sys.stdin:
    if line == "memory\\n":
        status = dict(part.split(":", 1) for part in open("/proc/self/status").read().splitlines())
        print(int(status["VmRSS"].split()[0]) * 1024, flush=True)
        continue
    kind, n, depth = line.split()
    print(run(kind, int(n), int(depth)), flush=True)
"""


class Side:
    """One engine with one file. `name` is for tables."""

    def __init__(self, name: str, script: str, p: dict[str, Any], env: dict[str, str]) -> None:
        self.name = name
        command = [sys.executable, "-c", script + LOOP, json.dumps(p)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        self._answer("ready")

    def _answer(self, wanted: str | None = None) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if wanted is None or line.strip() == wanted:
                return line
        raise SystemExit(f"{self.name} ended with exit code {self.process.wait()}")

    def _ask(self, question: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(question + "\n")
        self.process.stdin.flush()
        return self._answer()

    def seconds(self, kind: str, n: int, depth: int = 0) -> float:
        """How long a prompt of n tokens ("pp"), or n single tokens ("tg"), take behind `depth` others."""
        return float(self._ask(f"{kind} {n} {depth}"))

    def resident(self) -> int:
        """Bytes of memory that the process holds, mapped files included."""
        return int(self._ask("memory"))

    def close(self) -> None:
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()
        self.process.wait()


def stock() -> Peer:
    """llama.cpp, built when it is missing. Where it cannot be had the program ends and says why."""
    try:
        return Peer(*ensure_peer())
    except PeerMissing as reason:
        sys.exit(f"nothing to compare with: {reason}")


def stock_env(peer: Peer) -> dict[str, str]:
    """llama.cpp as it is by default: its own waiting policy, unlike in tests."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(peer.site), str(SUPPORT)])}


@contextlib.contextmanager
def pair(peer: Peer, p: dict[str, Any]) -> Iterator[list[Side]]:
    """Ours and llama.cpp with the same file and settings."""
    with contextlib.ExitStack() as stack:
        sides = []
        for name, script, env in (("ours", OURS, dict(os.environ)), ("llama.cpp", STOCK, stock_env(peer))):
            sides.append(Side(name, script, {"endpoints": [], **p}, env))
            stack.callback(sides[-1].close)
        yield sides


@contextlib.contextmanager
def our_server(n_threads: int) -> Iterator[str]:
    """Endpoint of a pyggml-rpc-server on loopback."""
    command = [sys.executable, "-m", "pyggml_cli.rpc_server", "-p", "0", "--protocol", "7", "-t", str(n_threads)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                word = line.split()[-1] if line.split() else ""
                if "endpoint" in line and word.rpartition(":")[2].isdigit():
                    yield word
                    return
            raise SystemExit(f"pyggml-rpc-server ended with exit code {process.wait()}")
        finally:
            process.terminate()
            process.stdout.close()


@contextlib.contextmanager
def over_rpc(peer: Peer, p: dict[str, Any]) -> Iterator[list[Side]]:
    """Ours locally; then all layers behind one server on loopback: ours -> ours, stock -> ours, stock -> stock."""
    n_threads = p["n_threads"]
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(our_server(n_threads))
        theirs = stack.enter_context(peer.rpc_server(n_threads=n_threads, debug=False)).endpoint
        sides = []
        for name, script, endpoints in (
            ("ours, local", OURS, []),
            ("ours -> ours", OURS, [ours]),
            ("stock -> ours", STOCK, [ours]),
            ("stock -> stock", STOCK, [theirs]),
        ):
            env = dict(os.environ) if script is OURS else stock_env(peer)
            sides.append(Side(name, script, {**p, "endpoints": endpoints}, env))
            stack.callback(sides[-1].close)
        yield sides
