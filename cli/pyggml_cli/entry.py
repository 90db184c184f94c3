"""How a command begins and ends: exit codes, one-line errors.

Owns the way out.
"""

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Sequence

from pyggml.errors import PyggmlError
from pyggml_cli.flags import UsageError
from pyggml_cli.interrupts import EXIT_INTERRUPTED, State, interruptible
from pyggml_cli.terminal import shown_controls

EXIT_ERROR, EXIT_USAGE, EXIT_PIPE = 1, 2, 141  # the last: 128 + the signal's number
FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


def run(command: Callable[[Sequence[str]], int], argv: Sequence[str] | None) -> int:
    """Run a command: 0, or the command's own code; 1 for an error, 2 for bad usage, 130 after Ctrl-C.

    What is wrong with a file, a flag, a machine or a peer is one line on stderr, its control characters shown as
    escapes; own bugs keep their traceback.
    """
    closed = _without_holes()
    try:
        with interruptible(last=argv is None), shown_controls():
            return _run(command, argv, closed)
    except KeyboardInterrupt:  # before anything was begun
        return _interrupted()


def _run(command: Callable[[Sequence[str]], int], argv: Sequence[str] | None, closed: bool) -> int:
    try:
        if closed:
            raise OSError(errno.EBADF, "closed", "standard output")
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(
                errors="backslashreplace"
            )  # in ASCII there is no \xb1, and it must not end a command
        try:
            code = command(sys.argv[1:] if argv is None else argv)
            sys.stdout.flush()
        finally:
            State.over = True
        return code
    except UsageError as reason:
        return _fail(reason, EXIT_USAGE)
    except BrokenPipeError:  # whoever read our text has had enough of it
        _drop_output()
        return EXIT_PIPE
    except PyggmlError as reason:
        return _fail(reason, EXIT_ERROR)
    except UnicodeError:
        raise  # a ValueError of ours, no matter of the system
    except OSError as reason:
        if reason.filename is None and reason.errno in FULL:  # files of ours say their names
            _drop_output()
            return _fail(f"standard output: {reason.strerror}", EXIT_ERROR)
        what = reason if reason.filename is None else f"{_text(reason.filename) or repr('')}: {reason.strerror}"
        return _fail(what, EXIT_ERROR)
    except MemoryError as reason:
        return _fail(f"out of memory: {reason}", EXIT_ERROR)
    except KeyboardInterrupt:
        return _interrupted()


def _interrupted() -> int:
    print("\ninterrupted", file=sys.stderr)
    return EXIT_INTERRUPTED


def _without_holes() -> bool:
    """Put the null device where a standard stream is closed, so that no file of ours gets its number; whether stdout was."""
    closed = sys.stdout is None
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - for as long as the process lives
    return closed


def _drop_output() -> None:
    """What stdout still holds goes nowhere: the flush at exit is silent."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _text(name: object) -> str:
    """A file's name, with bytes that are no text shown as such."""
    return os.fsencode(name).decode("utf-8", "backslashreplace") if isinstance(name, str | bytes) else str(name)


def _fail(reason: object, code: int) -> int:
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()  # text first, then what ended it
    print(f"error: {' '.join(str(reason).split())}", file=sys.stderr)
    return code
