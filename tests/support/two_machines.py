"""Two machines with a cable between them: network namespaces joined by a pair of virtual Ethernet devices, so that real
segments are lost when the other one loses its cable. `unshare -rn python two_machines.py CASE MUTANT` prints JSON.
"""

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

NEAR, FAR = "10.99.0.1", "10.99.0.2"
PORT = 51052  # where rank 0 listens


def why_not() -> str | None:
    """Why there can be no such machines here."""
    if not sys.platform.startswith("linux"):
        return "network namespaces are Linux's"
    if missing := [tool for tool in ("unshare", "ip") if shutil.which(tool) is None]:
        return f"no {' nor '.join(missing)} here, which make network namespaces"
    probe = "ip link add near type veth peer name far && unshare -n true"
    done = subprocess.run(["unshare", "-rn", "sh", "-c", probe], capture_output=True, text=True, timeout=60)
    return f"no network namespaces here: {done.stderr.strip()}" if done.returncode else None


def run(case: str, mutant: str = "none") -> dict[str, Any]:
    """What the case found; with a mutant in place (MUTANTS)."""
    command = ["unshare", "-rn", sys.executable, __file__, case, mutant]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


# ---- the other machine


class Far:
    def __init__(self, kind: str) -> None:
        ip("link", "add", "near", "type", "veth", "peer", "name", "far")
        command = ["unshare", "-n", sys.executable, __file__, "far", kind]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._hear() == "ready"
        ip("link", "set", "far", "netns", str(self.process.pid))
        ip("addr", "add", f"{NEAR}/24", "dev", "near")
        ip("link", "set", "near", "up")
        self.port = int(self.ask("begin"))

    def _hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, word: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        return self._hear()


@contextlib.contextmanager
def far(kind: str) -> Iterator[Far]:
    made = Far(kind)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.wait()


def serve(kind: str) -> None:
    """The other machine's program: does what is said on standard input. `kind`: ours, "rank 1", or "reads nothing"."""
    from pyggml_rpc.server import Server
    from pyggml_rpc.transport import Listener

    from pyggml.backend.cpu import CPUDevice

    accepted: list[socket.socket] = []
    print("ready", flush=True)
    for line in sys.stdin:
        word, answer = line.strip(), "done"
        if word == "begin":
            ip("addr", "add", f"{FAR}/24", "dev", "far")
            ip("link", "set", "far", "up")
            if kind == "rank 1":
                answer = "0"
            elif kind == "ours":
                answer = str(Listener(Server([CPUDevice()], n_threads=1), FAR, 0).address[1])
            else:
                listening = socket.create_server((FAR, 0))
                threading.Thread(target=accept, args=(listening, accepted), daemon=True).start()
                answer = str(listening.getsockname()[1])
        elif word == "call":
            from pyggml_rpc import link
            from pyggml_rpc.comm import AllowList

            called = link.join(AllowList([NEAR]), FAR, 1, NEAR, PORT, lambda: False)
            space = bytearray(1 << 16)
            threading.Thread(
                target=called.swap, args=(memoryview(b"\7" * len(space)), memoryview(space)), daemon=True
            ).start()
        elif word == "accepted":
            answer = str(len(accepted))
        else:  # "down" or "up"
            ip("link", "set", "far", word)
        print(answer, flush=True)


def accept(listening: socket.socket, accepted: list[socket.socket]) -> None:
    while True:
        accepted.append(listening.accept()[0])


# ---- this machine


def request(down_for: float | None) -> dict[str, Any]:
    """A request to a server of ours that has just lost its cable, for ever or for so many seconds."""
    from pyggml_rpc.client import Client
    from pyggml_rpc.errors import RpcError
    from pyggml_rpc.wire import Command

    with far("ours") as other:
        endpoint = f"{FAR}:{other.port}"
        client = Client(endpoint, 5, 5, 5)
        client.ask(Command.DEVICE_COUNT)
        other.ask("down")
        if down_for is not None:
            threading.Timer(down_for, other.ask, ("up",)).start()
        began, error = time.monotonic(), None
        try:
            client.ask(Command.DEVICE_COUNT)
        except RpcError as reason:
            error = str(reason)
        return {"endpoint": endpoint, "error": error, "seconds": time.monotonic() - began, "lost": client.lost}


def flood(down: bool, seconds: float) -> dict[str, Any]:
    """More bytes than anybody takes, to a machine that loses its cable, or that does not read for so long."""
    from pyggml_rpc.transport import Wire
    from pyggml_rpc.unheard import UnheardError, info

    with far("reads nothing") as other:
        wire, silence, ended = Wire(FAR, other.port, 5), 0, "in time"
        began = time.monotonic()

        def pause() -> float:
            nonlocal silence
            known = info(wire._sock)
            assert known is not None
            silence = max(silence, known.last_acknowledgement)
            if time.monotonic() - began > seconds:
                raise TimeoutError
            return 1.0

        if down:
            other.ask("down")
        try:
            wire.send([bytes(1 << 26)], pause)
        except UnheardError:
            ended = "lost"
        except TimeoutError:
            ended = "not lost"
        took = time.monotonic() - began
        return {"ended": ended, "seconds": took, "silence": silence / 1000, "accepted": int(other.ask("accepted"))}


def add_up() -> dict[str, Any]:
    """Two servers that add up, of which the other one loses its cable."""
    from pyggml_rpc import link
    from pyggml_rpc.comm import AllowList, CommError

    with far("rank 1") as other:
        joined: list[link.Link] = []
        allowed = AllowList([FAR])
        waiting = threading.Thread(target=lambda: joined.append(link.join(allowed, NEAR, 0, "", PORT, lambda: False)))
        waiting.start()
        assert other.ask("call") == "done"
        waiting.join()
        mine = memoryview(bytearray(1 << 16))
        theirs = memoryview(bytearray(1 << 16))
        joined[0].swap(mine, theirs)
        other.ask("down")
        began, error = time.monotonic(), None
        try:
            joined[0].swap(mine, theirs)
        except CommError as reason:
            error = str(reason)
        return {"error": error, "seconds": time.monotonic() - began, "sum": theirs[0]}


LIMIT = 1.5  # seconds; above the 1.2 s for which Linux leaves the first probes of a window unanswered (tcp_invalid_ratelimit)
LONGER = 4.0  # a second without a cable is less, however late a busy machine gives it back
CASES = {
    "dead": lambda: request(None),
    "back": lambda: request(1.0),
    "dead while one sends": lambda: flood(True, 20.0),
    "dead while one adds up": add_up,
    "alive with its window closed": lambda: flood(False, 4 * LIMIT),
}
MUTANTS = {
    "nobody looks": ("transport.Wire", "_select", "self._watch.look()", "pass"),
    "silence is enough": ("unheard", "unheard", "without_answer >= repetitions", "True"),
}


def main(case: str, mutant: str) -> None:
    import pytest
    from mutants import mutate
    from pyggml_rpc import link, transport, unheard

    with pytest.MonkeyPatch.context() as monkeypatch:
        if mutant in MUTANTS:
            where, name, old, new = MUTANTS[mutant]
            owner = {"transport.Wire": transport.Wire, "unheard": unheard}[where]
            mutate(monkeypatch, (owner, name, old, new))
        for module in (transport, link):
            monkeypatch.setattr(module, "UNHEARD", LONGER if case == "back" else LIMIT)
        print(json.dumps(CASES[case]()))


if __name__ == "__main__":
    serve(sys.argv[2]) if sys.argv[1] == "far" else main(*sys.argv[1:])
