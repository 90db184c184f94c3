"""A file that becomes shorter while it is mapped: one line and exit code 1 in place of a bus error.

Owns the handler of SIGBUS. It is the commands' alone: a program that uses pyggml as a library keeps its own handlers.
Python's `signal` would not do: its handlers run when compiled code returns, which after a bus error it never does.
"""

import contextlib
import ctypes
import os
import signal
import threading
from collections.abc import Iterator

from pyggml.errors import PyggmlError

EXIT_ERROR = 1
_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)


def explain() -> str:
    """Why there was a bus error: which of the open model files was cut, if one was."""
    from pyggml.gguf.file import OPEN_FILES

    for file in list(OPEN_FILES):
        try:
            file.check_whole()
        except PyggmlError as reason:
            return str(reason)
    return "bus error: a file that is mapped was cut or cannot be read, or memory is broken"


def _die(number: int) -> None:
    """On the thread that met the error, within compiled code or a copy; nothing there can go on."""
    try:
        line = f"error: {' '.join(explain().split())}\n"
    except BaseException:
        line = "error: bus error\n"
    with contextlib.suppress(OSError):
        os.write(2, line.encode("utf-8", "backslashreplace"))
    os._exit(EXIT_ERROR)


_die_in_c = _HANDLER(_die)


class _Installed:
    """By how many, on whatever threads, and what was there before the first of them."""

    lock = threading.Lock()
    count = 0
    before: int | None = None


def _install(handler: object) -> int | None:
    install = ctypes.CDLL(None).signal
    install.restype, install.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p]
    found: int | None = install(signal.SIGBUS, handler)
    return found


@contextlib.contextmanager
def explain_bus_errors() -> Iterator[None]:
    """While this lasts a bus error ends the process with a line. Where SIGBUS is unknown nothing is done. Several may last at
    once, and end in any order."""
    if not hasattr(signal, "SIGBUS"):
        yield
        return
    with _Installed.lock:
        _Installed.count += 1
        if _Installed.count == 1:
            _Installed.before = _install(ctypes.cast(_die_in_c, ctypes.c_void_p))
    try:
        yield
    finally:
        with _Installed.lock:
            _Installed.count -= 1
            if not _Installed.count:
                _install(_Installed.before)
