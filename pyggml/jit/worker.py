"""A process that compiles for another one: both ends, and what travels between them.

Compiling there and not here has three reasons. LLVM cannot be interrupted, a process can: Ctrl-C ends a command at
once. Numba holds the GIL for most of its time, and a server has clients to answer meanwhile. And what Numba and LLVM
keep of every kernel goes away with the process.

Owns starting and ending such processes.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import importlib
import os
import queue
import struct
import subprocess
import sys
import threading
import traceback

from pyggml.errors import DeviceError
from pyggml.jit import compiling, machine
from pyggml.jit.added import modules_of
from pyggml.jit.compiling import Code
from pyggml.jit.spec import Spec
from pyggml.quick_numba import quicken

_HEAD = struct.Struct("<BII")  # kind of answer, bytes of two parts
_READY, _CODE, _ERROR = range(3)
SERVE = "from pyggml.jit.worker import serve; serve()"
_WAIT = 5.0  # seconds for a process to leave that was told to


class WorkerDied(Exception):
    """The process ended in place of an answer."""


def surroundings() -> tuple[object, ...]:
    """What a process is started with: when that has changed, it is no longer the right one."""
    return (*machine.target(), *sys.path)


class Worker:
    """A compiling process. Made by `Worker.start`; one thread at a time uses it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.made_for = surroundings()
        self.compiled = 0

    @classmethod
    def start(cls) -> Worker | None:
        """None where there can be none: the running program is no plain interpreter, or another one does not start."""
        name = os.path.basename(sys.executable or "").lower()
        if not name.startswith(("python", "pypy")) or hasattr(sys, "frozen"):
            return None
        code = f"import sys; sys.path[:] = {sys.path!r}; {SERVE}"
        pipe = subprocess.PIPE
        apart = {"process_group": 0} if os.name == "posix" else {}  # Ctrl-C is for the one who asked
        try:
            process = subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, **apart)  # type: ignore[call-overload]
        except OSError:
            return None
        worker = cls(process)
        try:
            kind, _, _ = worker._answer()
        except WorkerDied:
            worker.close()
            return None
        assert kind == _READY
        return worker

    def compile(self, spec: Spec) -> Code:
        """Raises what the compiler raised there, and WorkerDied."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(repr((tuple(spec), modules_of(spec))).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise self._died() from None
        kind, first, second = self._answer()
        self.compiled += 1
        if kind == _CODE:
            return Code(first.decode(), second)
        name, _, text = first.decode().partition(" ")
        error: Exception = DeviceError(text)
        if name != "DeviceError":
            builtin = getattr(builtins, name, None)
            known = isinstance(builtin, type) and issubclass(builtin, Exception) and builtin is not UnicodeDecodeError
            error = builtin(text) if known else RuntimeError(f"{name}: {text}")  # type: ignore[misc]
            error.add_note(f"kernel {spec.label}, compiled in a process of its own:\n{second.decode()}")
        raise error

    def _answer(self) -> tuple[int, bytes, bytes]:
        assert self._process.stdout is not None
        try:
            kind, a, b = _HEAD.unpack(self._read(_HEAD.size))
            return kind, self._read(a), self._read(b)
        except (OSError, ValueError):  # its pipe was closed in between
            raise self._died() from None

    def _read(self, size: int) -> bytes:
        assert self._process.stdout is not None
        data = self._process.stdout.read(size)
        if len(data) != size:
            raise self._died()
        return data

    def _died(self) -> WorkerDied:
        self.kill()
        return WorkerDied(f"the process that compiles ended with code {self._process.returncode}")

    def kill(self) -> None:
        """End it now; from any thread."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """End it when it has nothing to do."""
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(OSError):
                stream.close()
        try:
            self._process.wait(_WAIT)
        except subprocess.TimeoutExpired:
            self.kill()


# ---- the other end


def serve() -> None:
    """Body of the process: a spec and the modules to import for it a line in, an answer each out; ends when nobody asks any more, also in mid-kernel."""
    answers = os.dup(1)
    os.dup2(2, 1)  # what anybody else prints is no answer
    asked: queue.SimpleQueue[tuple[Spec, tuple[str, ...]]] = queue.SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            spec, modules = ast.literal_eval(line)
            asked.put((Spec(*spec), modules))
        os._exit(0)

    _write(answers, _READY)
    threading.Thread(target=listen, daemon=True).start()
    while True:
        spec, modules = asked.get()
        try:
            for module in modules:
                importlib.import_module(module)
            quicken("numba")
            code = compiling.compile_spec(spec)
        except Exception as error:
            said = traceback.format_exc()
            _write(answers, _ERROR, f"{type(error).__name__} {error}".encode(), said.encode())
        else:
            _write(answers, _CODE, code.symbol.encode(), code.object_file)


def _write(answers: int, kind: int, first: bytes = b"", second: bytes = b"") -> None:
    data = memoryview(_HEAD.pack(kind, len(first), len(second)) + first + second)
    while data:
        data = data[os.write(answers, data) :]
