"""One process of the stock library for many requests: JSON lines to peer_worker.py and back.

Owns its life: started when it is first needed, replaced when it dies, ended by `close`.
"""

import contextlib
import json
import select
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("peer_worker.py")
REQUESTS = 100  # requests after which a fresh process takes over: what llama_cpp leaks stays small


class PeerProcess:
    def __init__(self, env: dict[str, str]) -> None:
        self._env = env
        self._process: subprocess.Popen[str] | None = None
        self._served = 0
        self._turn = threading.Lock()

    @property
    def pid(self) -> int | None:
        """Of the process that serves; None = there is none at the moment."""
        return self._process.pid if self._process is not None else None

    def request(self, command: str, p: dict[str, Any], timeout: float = 600) -> str:
        """What the library logged meanwhile. A failure of the command, or the process's death, is an AssertionError that
        shows the end of that; the next request finds a process again."""
        with self._turn, tempfile.NamedTemporaryFile() as log:
            if self._process is None or self._served >= REQUESTS:
                self.close()
                self._process = self._start()
            self._served += 1
            answer = self._ask(self._process, {"command": command, "p": p, "log": log.name}, timeout)
            said = log.read().decode(errors="replace")
            if answer is None:
                code = self._end()
                raise AssertionError(f"peer process ended with {code} during {command}:\n{said[-4000:]}")
            assert answer["error"] is None, f"peer failed at {command}: {answer['error']}\n{said[-4000:]}"
            return said

    def _start(self) -> "subprocess.Popen[str]":
        pipe, command = subprocess.PIPE, [sys.executable, str(WORKER), "converse"]
        self._served = 0
        return subprocess.Popen(command, env=self._env, stdin=pipe, stdout=pipe, text=True)

    @staticmethod
    def _ask(process: "subprocess.Popen[str]", request: dict[str, Any], timeout: float) -> dict[str, Any] | None:
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            return None
        if not select.select([process.stdout], [], [], timeout)[0]:
            process.kill()
            return None
        line = process.stdout.readline()
        return json.loads(line) if line else None

    def _end(self) -> int:
        """Its exit code."""
        process, self._process = self._process, None
        assert process is not None and process.stdin is not None and process.stdout is not None
        process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        try:
            return process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def close(self) -> None:
        """End it; a later request starts another one."""
        if self._process is not None:
            self._end()
