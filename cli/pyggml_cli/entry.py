"""How a command begins and ends: exit codes, one-line errors, Ctrl-C.

Owns the way out; must not know what any command does in between.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

from pyggml.errors import PyggmlError
from pyggml_cli.flags import UsageError

EXIT_ERROR, EXIT_USAGE, EXIT_INTERRUPTED, EXIT_PIPE = 1, 2, 130, 141  # the last two: 128 + the signal's number


def run(command: Callable[[Sequence[str]], int], argv: Sequence[str] | None) -> int:
    """Run a command: 0, or the command's own code; 1 for an error, 2 for bad usage, 130 after Ctrl-C.

    What is wrong with a file, a flag, a machine or a peer is one line on stderr; own bugs keep their traceback.
    """
    try:
        code = command(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return code
    except UsageError as reason:
        return _fail(reason, EXIT_USAGE)
    except BrokenPipeError:  # whoever read our text has had enough of it
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the flush at exit is silent
        return EXIT_PIPE
    except PyggmlError as reason:
        return _fail(reason, EXIT_ERROR)
    except UnicodeError:
        raise  # a ValueError of ours, no matter of the system
    except OSError as reason:
        what = f"{reason.filename}: {reason.strerror}" if reason.filename else reason
        return _fail(what, EXIT_ERROR)
    except MemoryError as reason:
        return _fail(f"out of memory: {reason}", EXIT_ERROR)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def _fail(reason: object, code: int) -> int:
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()  # text first, then what ended it
    print(f"error: {' '.join(str(reason).split())}", file=sys.stderr)
    return code


@contextlib.contextmanager
def on_ctrl_c(callback: Callable[[], None]) -> Iterator[None]:
    """Call `callback`, on a thread of its own, the moment Ctrl-C is pressed.

    Python raises KeyboardInterrupt only when the main thread returns to Python code, and a large batch in compiled
    code takes seconds: the callback can end it (Context.abort). The signal reaches the thread through a socket.
    """
    if threading.current_thread() is not threading.main_thread():  # as in tests: signals are the main thread's
        yield
        return
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)

    def watch() -> None:
        while number := reading.recv(1):
            if number[0] == signal.SIGINT:
                callback()

    watcher = threading.Thread(target=watch, name="ctrl-c", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        writing.close()
        watcher.join()
        reading.close()
