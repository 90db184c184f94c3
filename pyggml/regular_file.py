"""Opening what must be a regular file: a pipe or a terminal in its place is an error, not a wait."""

import errno
import os
import stat
from typing import BinaryIO


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """The file, open for reading. Raises OSError with the path as it was given."""
    given = os.fspath(path)
    number = os.open(given, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    mode = os.fstat(number).st_mode
    if not stat.S_ISREG(mode):
        os.close(number)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), given)
        raise OSError(errno.EINVAL, "not a regular file", given)
    return os.fdopen(number, "rb")
