"""Rendering a Jinja template that came with a file: `render(template, variables)`, in another process with limits.

Owns that process (worker.py), which stays for the next call.
"""

import atexit
import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyggml.errors import PyggmlError

LARGEST_TEMPLATE = 1 << 20  # characters
LARGEST_INPUT = 64 << 20  # bytes of the variables, as JSON
LARGEST_ANSWER = 64 << 20  # bytes; the worker counts characters, which are up to 12 bytes in JSON
SECONDS = 60.0  # by the clock
CPU_SECONDS = 3.0  # that the worker computes

_WORKER = Path(__file__).with_name("worker.py")


class ChatError(PyggmlError):
    """A chat template that is damaged, hostile or unfit for the conversation; messages that are none."""


class _Worker:
    """The process, started when it is first needed. One caller at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def ask(self, request: bytes) -> bytes:
        """One line for another; b"" if the process died over it."""
        with self._lock:
            process = self._running()
            assert process.stdin is not None and process.stdout is not None
            timer = threading.Timer(SECONDS, process.kill)
            timer.daemon = True
            timer.start()
            answer = b""
            try:
                process.stdin.write(request + b"\n")
                process.stdin.flush()
                answer = process.stdout.readline(LARGEST_ANSWER)
            except BrokenPipeError:
                pass
            finally:
                timer.cancel()
                if not answer.endswith(b"\n"):  # dead, too talkative, or interrupted: not fit for another question
                    self._end(process)
            return answer if answer.endswith(b"\n") else b""

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            if self._process is not None and self._owner == os.getpid():
                self._end(self._process)
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", str(_WORKER), str(CPU_SECONDS)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,  # Ctrl-C is ours
                )
            except OSError as e:
                raise ChatError(f"the process that renders chat templates cannot be started: {e}") from None
            self._owner = os.getpid()
        return self._process

    def _end(self, process: "subprocess.Popen[bytes]") -> None:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):  # what was not written yet
                    stream.close()
        self._process = None

    def forked(self) -> None:
        """In a child process: whoever held the lock does not exist here; a process of its own is started when needed."""
        self._lock = threading.Lock()

    def close(self) -> None:
        """End the process, if it is ours."""
        if self._process is not None and self._owner == os.getpid():
            self._end(self._process)


_worker = _Worker()
atexit.register(_worker.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_worker.forked)


def render(template: str, variables: Mapping[str, Any]) -> str:
    """The text. `variables`: what JSON can hold. Raises ChatError."""
    if len(template) > LARGEST_TEMPLATE:
        raise ChatError(f"the chat template has {len(template)} characters, more than {LARGEST_TEMPLATE}")
    try:
        request = json.dumps([template, variables]).encode()
    except (TypeError, ValueError, RecursionError) as e:
        raise ChatError(f"the messages cannot be handed to a template: {_line(e)}") from None
    if len(request) > LARGEST_INPUT:
        raise ChatError(f"the conversation takes {len(request)} bytes, more than {LARGEST_INPUT}")
    answer = _worker.ask(request)
    if not answer:
        raise ChatError("the chat template takes too long, or too much memory, and was ended")
    reply = json.loads(answer)
    if "error" in reply:
        raise ChatError(f"the chat template: {_line(reply['error'])}")
    return str(reply["text"])


def _line(reason: object) -> str:
    text = " ".join(str(reason).split())
    return text if len(text) <= 300 else f"{text[:300]}..."
