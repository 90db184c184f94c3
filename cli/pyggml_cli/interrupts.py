"""Ctrl-C: what it ends, and what it must not leave half done.

Owns the handler of SIGINT while a command runs. Python calls a handler between any two instructions of the main thread,
so the KeyboardInterrupt that it raises may come when something is half set up, or before its end was even begun. A
signal that comes within a function marked as `whole` waits until that function has ended; one that comes within an import
waits for that, too, as what is imported may take a KeyboardInterrupt for something else: NumPy makes an ImportError of it.
"""

import contextlib
import functools
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any, Self, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])
_MARKED: set[CodeType] = set()
_IMPORTS = "<frozen importlib._bootstrap>"  # the file that functions of Python's import are said to be from


def _end() -> None:
    raise KeyboardInterrupt


class State:
    """There is one in a process: handlers run on the main thread alone. Set `over` in place, not by a call, which may be
    interrupted as it begins."""

    handler: Callable[[], None] = staticmethod(_end)
    depth = 0  # functions marked as whole that are under way
    pending = False  # a signal came within them
    over = False  # the command has ended: nothing is left to interrupt
    last = False  # and then the process ends


EXIT_INTERRUPTED = 130  # 128 + the signal's number


def whole(function: Function) -> Function:
    """No signal interrupts this function: one that comes within it is handled as it returns."""

    def run(*args: Any, **options: Any) -> Any:
        State.depth += 1  # from the call to here, and to the very end, `run` is found on the stack
        try:
            return function(*args, **options)
        finally:
            State.depth -= 1
            if State.pending and not State.depth:
                State.pending = False
                State.handler()

    _MARKED.add(run.__code__)
    return functools.wraps(function)(run)  # type: ignore[return-value]


def _pressed(number: int, frame: FrameType | None) -> None:
    if State.over:
        if State.last:  # what is left to write waits for a reader who does not read
            os._exit(EXIT_INTERRUPTED)
        return
    importing = None
    while frame is not None:
        if frame.f_code in _MARKED:
            State.pending = True
            return
        if frame.f_code.co_filename == _IMPORTS:
            importing = frame  # at last the outermost
        frame = frame.f_back
    if importing is None or sys.getprofile() is not None:  # or it is pressed again
        State.handler()
    else:
        sys.setprofile(functools.partial(_profiled, importing))


def _profiled(importing: FrameType, frame: FrameType, event: str, _arg: object) -> None:
    """Python calls this at each call and return. What it raises at the end of the import, the import raises."""
    if frame is importing and event == "return":
        sys.setprofile(None)
        State.handler()


def _here() -> bool:
    """Signals are the main thread's; tests run commands on others too."""
    return threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def interruptible(last: bool) -> Iterator[None]:
    """While a command runs. `last`: the process ends with it, and Ctrl-C does nothing on its way out."""
    before = [signal.default_int_handler, *([signal.SIG_DFL] if last else [])]  # the latter: start.py
    if not _here() or signal.getsignal(signal.SIGINT) not in before:  # who started us ignores it
        yield
        return
    State.over, State.last = False, last
    try:
        signal.signal(signal.SIGINT, _pressed)
        yield
    finally:
        State.over = True
        if last:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
        signal.signal(signal.SIGINT, signal.SIG_IGN if last else signal.default_int_handler)
        State.over = State.last = State.pending = False


class on_ctrl_c:
    """Call `callback`, on a thread of its own, the moment Ctrl-C is pressed; `handler` on the main thread, when it returns
    to Python code, instead of raising KeyboardInterrupt.

    A large batch in compiled code takes seconds: the callback can end it (Context.abort). The signal reaches the thread
    through a socket.
    """

    def __init__(self, callback: Callable[[], None], handler: Callable[[], None] | None = None) -> None:
        self._callback, self._handler = callback, handler
        self._before: tuple[Callable[[], None], int] | None = None
        self._reading: socket.socket | None = None
        self._writing: socket.socket | None = None
        self._watcher: threading.Thread | None = None

    def __enter__(self) -> Self:
        try:
            self._begin()
            return self
        except BaseException:
            self.__exit__()
            raise

    @whole
    def _begin(self) -> None:
        if not _here():
            return
        self._reading, self._writing = socket.socketpair()
        self._writing.setblocking(False)
        watcher = threading.Thread(target=self._watch, args=(self._reading,), name="ctrl-c", daemon=True)
        watcher.start()
        self._watcher = watcher
        self._before = State.handler, signal.set_wakeup_fd(self._writing.fileno(), warn_on_full_buffer=False)
        if self._handler is not None:
            State.handler = self._handler

    def _watch(self, reading: socket.socket) -> None:
        while number := reading.recv(1):
            if number[0] == signal.SIGINT:
                self._callback()

    @whole
    def __exit__(self, *what: object) -> None:
        if self._before is not None:
            handler, fd = self._before
            self._before, State.handler = None, handler
            signal.set_wakeup_fd(fd)
        if self._writing is not None:
            self._writing.close()
        if self._watcher is not None:
            self._watcher.join()
        if self._reading is not None:
            self._reading.close()
