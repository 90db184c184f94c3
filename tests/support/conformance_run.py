"""The reference's own op tests against an RPC server: which there are, and how each one ended.

Owns the conversation with the driver (conformance_driver.cpp) and the server's process.
"""

import os
import re
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import NamedTuple, Protocol

from conformance_build import ensure_driver

SILENCE = 300.0  # seconds that a case may take
ABORTED = "Remote RPC server crashed"  # what a stock client says when a server has hung up

# Elements of a row are not side by side here: ggml-cpu asserts that they are (ggml_compute_forward_sum_f32), but not in
# the peer's build, and adds up others.
WRONG_THERE = frozenset({("SUM", "type=f32,ne=[33,256,1,1],permute=[1,0,2,3]")})


class Case(NamedTuple):
    """One of the reference's test cases. `supported`: by ggml's own CPU backend, which the results are compared with."""

    number: int
    op: str
    supported: bool
    params: str

    def __str__(self) -> str:
        return f"{self.op}({self.params})"


class End(Enum):
    PASSED = "passed"
    FAILED = "failed"
    REFUSED = "refused"  # the server says that it does not do this


class Outcome(NamedTuple):
    case: Case
    end: End
    why: str  # what the test printed, or the server's reason
    seconds: float


def all_cases(protocol: str = "7") -> list[Case]:
    """In the order of the reference that speaks this version."""
    done = subprocess.run([str(ensure_driver(protocol))], check=True, capture_output=True, text=True)
    rows = (line.split("\t") for line in done.stdout.splitlines())
    return [
        Case(int(number), op, supported == "1" and (op, params) not in WRONG_THERE, params)
        for number, op, supported, params in rows
    ]


def sample(cases: Sequence[Case], n: int) -> list[Case]:
    """At most `n` cases of each op, evenly spread over those there are: always the same ones."""
    by_op: dict[str, list[Case]] = {}
    for case in cases:
        by_op.setdefault(case.op, []).append(case)
    return [of[i * len(of) // n] if len(of) > n else of[i] for of in by_op.values() for i in range(min(n, len(of)))]


class Server(Protocol):
    """What is asked of a server under test. `protocol`: "7" or "8", of both ends."""

    protocol: str

    def endpoint(self) -> str:
        """Where it listens; starts it if it does not run."""

    def ended(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""

    def new_log(self) -> str:
        """What it has written since the last question."""

    def close(self) -> None: ...


class OwnServer:
    """Our pyggml-rpc-server on a free port of 127.0.0.1, started again when it ended. PYTHONPATH decides whose sources."""

    def __init__(self, threads: int = 2, protocol: str = "7") -> None:
        self.protocol = protocol
        self.command = [
            sys.executable,
            "-m",
            "pyggml_cli.rpc_server",
            "-p",
            "0",
            "--protocol",
            protocol,
            "-t",
            str(threads),
        ]
        self.folder = tempfile.TemporaryDirectory(prefix="conformance-")
        self.log = Path(self.folder.name) / "server.log"
        self.process: subprocess.Popen[str] | None = None
        self.read = 0

    def endpoint(self) -> str:
        if self.process is None or self.process.poll() is not None:
            with open(self.log, "ab") as log:
                self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=log, text=True)
            assert self.process.stdout is not None
            lines = (line for line in self.process.stdout if "endpoint" in line)
            found = next(lines, None)
            assert found is not None, f"the server did not start:\n{self.new_log()}"
            self.at = found.split(":", 1)[1].strip()
        return self.at

    def ended(self) -> int | None:
        assert self.process is not None
        try:
            return self.process.wait(0.2)
        except subprocess.TimeoutExpired:
            return None

    def new_log(self) -> str:
        text = self.log.read_bytes()[self.read :]
        self.read += len(text)
        return text.decode(errors="replace")

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            assert self.process.stdout is not None
            self.process.stdout.close()
        self.folder.cleanup()


class OtherServer:
    """A server that somebody else runs: its log is not here, so a refusal cannot be told from a fault."""

    def __init__(self, endpoint: str, protocol: str) -> None:
        self.at = endpoint
        self.protocol = protocol

    def endpoint(self) -> str:
        return self.at

    def ended(self) -> int | None:
        return None

    def new_log(self) -> str:
        return "connection closed: (see the server's log)\n"

    def close(self) -> None:
        pass


class Driver:
    """The reference's tests as a child process that runs chosen cases, each of which may take `silence` seconds."""

    def __init__(self, silence: float, protocol: str) -> None:
        self.silence = silence
        env = {**os.environ, "GGML_NO_BACKTRACE": "1", "OMP_WAIT_POLICY": "passive"}
        command = [str(ensure_driver(protocol)), "run"]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=env,
            start_new_session=True,  # a group of its own, so that `kill` reaches its forks
        )
        assert self.process.stdout is not None
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.process.stdout, selectors.EVENT_READ)
        self.pending = b""

    def ask(self, endpoint: str, cases: Iterable[Case]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(" ".join([endpoint, *(str(c.number) for c in cases)]).encode() + b"\n")
        self.process.stdin.flush()

    def line(self) -> str | None:
        """The next one; None when none came in time, or none will."""
        assert self.process.stdout is not None
        until = time.monotonic() + self.silence
        while b"\n" not in self.pending:
            if not self.selector.select(max(0.0, until - time.monotonic())):
                return None
            piece = os.read(self.process.stdout.fileno(), 1 << 16)
            if not piece:
                return None
            self.pending += piece
        line, self.pending = self.pending.split(b"\n", 1)
        return line.decode(errors="replace")

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def close(self) -> None:
        self.selector.close()
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


def run(cases: Sequence[Case], server: Server, silence: float = SILENCE) -> Iterator[Outcome]:
    """How each case ended, in order. A client process lives until a server refuses something, which ends it."""
    left = list(cases)
    driver = Driver(silence, server.protocol)
    try:
        while left:
            driver.ask(server.endpoint(), left)
            for outcome in _until_death(driver, left, server):
                left.pop(0)
                yield outcome
            if driver.process.poll() is not None:
                driver.close()
                driver = Driver(silence, server.protocol)
    finally:
        driver.close()


def _until_death(driver: Driver, cases: Sequence[Case], server: Server) -> Iterator[Outcome]:
    printed: list[str] = []
    began = time.monotonic()
    waiting = iter(list(cases))
    while (line := driver.line()) is not None:
        word, *rest = line.split() or [""]
        if word == "@start":
            printed, began = [], time.monotonic()
        elif word == "@end":
            ends = {"ok": End.PASSED, "fail": End.FAILED, "skip": End.FAILED}
            case = next(waiting)
            assert case.number == int(rest[0]), (case, line)
            yield Outcome(case, ends[rest[1]], _text(printed), time.monotonic() - began)
        elif word == "@died":
            case = next(waiting)
            assert case.number == int(rest[0]), (case, line)
            yield Outcome(case, *_why_it_died(printed, server), time.monotonic() - began)
            return
        elif word == "@done":
            return
        else:
            printed.append(line)
    code = driver.process.poll()
    driver.kill()
    why = f"nothing came for {driver.silence:g} s" if code is None else f"the driver ended with {code}"
    yield Outcome(next(waiting), End.FAILED, f"{why}: {_text(printed)}", time.monotonic() - began)


def _why_it_died(printed: Sequence[str], server: Server) -> tuple[End, str]:
    log = server.new_log()
    closed = re.findall(r"connection closed: (.*)", log)
    if "Traceback" in log:
        return End.FAILED, log[-2000:]
    if closed and any(ABORTED in line for line in printed):
        return End.REFUSED, closed[-1]
    code = server.ended()
    if code is not None:
        return End.FAILED, f"the server ended with {code}: {log[-500:]}"
    return End.FAILED, f"the client ended by itself: {_text(printed)}"


def _text(printed: Sequence[str]) -> str:
    return " ".join(line.strip() for line in printed if line.strip())
