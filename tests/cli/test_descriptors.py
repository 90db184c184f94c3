"""Servers hold as many connections as the system has file descriptors for, and then still serve those who are there."""

import contextlib
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mutants import Mutant, assert_caught
from pyggml_cli import descriptors
from waiting import until

from pyggml.errors import DeviceError

resource = pytest.importorskip("resource")
MANY = 300


class Limits:
    """The system's, of which no more than `most` are really had."""

    def __init__(self, soft: int, hard: int, most: int = 1 << 40) -> None:
        self.now, self.most = (soft, hard), most

    def getrlimit(self, what: int) -> tuple[int, int]:
        assert what == resource.RLIMIT_NOFILE
        return self.now

    def setrlimit(self, what: int, limits: tuple[int, int]) -> None:
        soft, hard = limits
        if hard != self.now[1] or soft < 0 or soft > self.most or 0 <= hard < soft:
            raise ValueError("current limit exceeds maximum limit")
        self.now = limits


ENDLESS = resource.RLIM_INFINITY
CASES = {  # soft and hard limit, what is really had; how many of 100 with two descriptors each; the soft limit then
    "enough": ((400, 1000), 1 << 40, 100, 400),
    "just enough": ((328, 328), 1 << 40, 100, 328),
    "raised": ((64, 1000), 1 << 40, 100, 328),
    "raised as far as it goes": ((64, 229), 1 << 40, 50, 229),
    "one": ((130, 130), 1 << 40, 1, 130),
    "endless": ((ENDLESS, ENDLESS), 1 << 40, 100, ENDLESS),
    "endless in name": ((256, ENDLESS), 300, 64, 256),
}


@pytest.mark.parametrize("case", CASES)
def test_how_many_can_be_had(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], case: str) -> None:
    limits, most, many, soft = CASES[case]
    fake = Limits(*limits, most)
    monkeypatch.setattr(resource, "getrlimit", fake.getrlimit)
    monkeypatch.setattr(resource, "setrlimit", fake.setrlimit)
    assert descriptors.affordable(100, "--max-clients", each=2) == many
    assert fake.now == (soft, limits[1])
    warning = f"warning: --max-clients: {many} instead of 100, as this process may open {soft} files (ulimit -n)\n"
    assert capsys.readouterr().err == ("" if many == 100 else warning)


def test_none_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Limits(129, 129)
    monkeypatch.setattr(resource, "getrlimit", fake.getrlimit)
    monkeypatch.setattr(resource, "setrlimit", fake.setrlimit)
    with pytest.raises(
        DeviceError, match=r"^this process may open 129 files \(ulimit -n\); a server needs 130 or more$"
    ):
        descriptors.affordable(100, "--max-clients", each=2)


def test_a_system_without_such_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    assert descriptors.affordable(1 << 20, "--max-clients") == 1 << 20


MUTANTS: dict[str, tuple[Mutant, str]] = {
    "it is not raised": ((descriptors, "affordable", "(needed, hard):", "():"), "raised"),
    "it is raised to what is needed alone": ((descriptors, "affordable", "(needed, hard):", "(needed,):"), "raised as far as it goes"),
    "nothing else is opened": ((descriptors, "affordable", "soft - beside", "soft"), "raised as far as it goes"),
    "each takes one": ((descriptors, "affordable", "wanted * each", "wanted"), "raised"),
    "endless is little": ((descriptors, "affordable", "soft == resource.RLIM_INFINITY or ", ""), "endless"),
}  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_are_caught(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], mutant: str) -> None:
    wrong, case = MUTANTS[mutant]

    def test(monkeypatch: pytest.MonkeyPatch) -> None:
        test_how_many_can_be_had(monkeypatch, capsys, case)

    assert_caught(monkeypatch, wrong, test)


# ---- whole servers


@contextlib.contextmanager
def connected(port: int, many: int = MANY) -> Iterator[list[socket.socket]]:
    """So many connections of which none says anything."""
    with contextlib.ExitStack() as stack:
        socks = []
        for _ in range(many):
            socks.append(stack.enter_context(socket.socket()))
            socks[-1].setblocking(False)
            socks[-1].connect_ex(("127.0.0.1", port))
        yield socks


def limited(soft: int, hard: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def n_open(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@linux_only
@pytest.mark.parametrize(
    "hard, warning",
    [(1000, ""), (148, "warning: --max-clients: 10 instead of 100, as this process may open 148 files (ulimit -n)\n")],
)
def test_an_rpc_server(spawn: Callable[..., Any], hard: int, warning: str) -> None:
    """A client that is there keeps its place and is served, however many come."""
    flags = ("-p", 0, "--no-warmup", "--max-clients", 100, "-m", 64)
    process = spawn("rpc_server", *flags, preexec_fn=limited(32, hard))
    line = next(line for line in process.stdout if "endpoint" in line)
    port, n_places = int(line.rsplit(":", 1)[1]), 10 if warning else 100
    with socket.create_connection(("127.0.0.1", port), 10) as client, client.makefile("rb") as answers:
        client.sendall(bytes([14, 24]) + bytes(7 + 24) + bytes([15]) + bytes(8))
        assert len(answers.read(36 + 12)) == 48
        with connected(port):
            until(lambda: n_open(process.pid) >= n_places)
            client.sendall((bytes([15]) + bytes(8)) * 3)
            assert answers.read(36) == (bytes([4]) + bytes(7) + bytes([1, 0, 0, 0])) * 3
            assert n_open(process.pid) < n_places + 20
    process.terminate()
    _, said = process.communicate(timeout=30)
    assert said.startswith(warning) and "Too many open files" not in said and process.returncode == 0


@linux_only
def test_an_http_server(spawn: Callable[..., Any], tmp_path: Path) -> None:
    """Who comes when no place is left is told so, and later ones are answered: at once, when others have gone."""
    pytest.importorskip("uvicorn")
    from serving import Client
    from text_model import write_text_model

    model = write_text_model(tmp_path / "text.gguf", n_ctx=256)
    process = spawn("server", "-m", model, "--port", 0, "-c", 256, preexec_fn=limited(64, 660))
    line = process.stdout.readline()
    client = Client(line.split()[-1])
    with connected(int(re.findall(r":(\d+)", line)[-1])):
        until(lambda: n_open(process.pid) >= 20)
        with contextlib.suppress(OSError):  # the answer may come before the question, and the end before both
            assert client.get("/health")[0] == 503
    until(lambda: client.get("/health")[0] == 200)
    process.terminate()
    _, said = process.communicate(timeout=30)
    assert said.startswith("warning: --max-connections: 20 instead of 1024, as this process may open 660 files")
    assert "out of system resource" not in said and process.returncode == 0
