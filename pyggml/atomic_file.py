"""Files that appear when they are complete, or not at all, and never in place of a file of another kind."""

import contextlib
import errno
import io
import itertools
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from pyggml.errors import PyggmlError

HEAD = 512  # bytes by which a file's kind is told
KEPT = 200  # bytes of a name that the name beside it has, of 255 that file systems take
_numbers = itertools.count()


class ForeignFileError(PyggmlError):
    """A name under which a file of another kind lies already: a slip, which must not destroy it."""


@contextlib.contextmanager
def atomic_file(
    path: str | os.PathLike[str], kind: str, is_one: Callable[[bytes], bool]
) -> Iterator[tuple[IO[bytes], Callable[[], None]]]:
    """A file to write, and the function that gives it its name; without that call it is gone at the end.

    kind    what it is, for errors: "saved state"
    is_one  whether a file that begins with these bytes (HEAD at most) is one: only those, and empty files, are replaced

    What is no regular file (a pipe, /dev/null) is written as it is, never replaced. Raises ForeignFileError, and OSError
    with the path as it was given.
    """
    given, place = os.fspath(path), Path(os.path.realpath(path))
    mode = _mode(place)
    if mode is not None and stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), given)
    replaced = mode is None or stat.S_ISREG(mode)
    if replaced:
        refuse_another(given, kind, is_one)
    waiting = _beside(place) if replaced else place
    try:
        raw = _Named(waiting, given)
    except OSError as error:
        raise OSError(error.errno, error.strerror, given) from None
    with io.BufferedWriter(raw) as file:

        def finish() -> None:
            file.flush()
            if replaced:
                os.replace(waiting, place)

        try:
            yield cast(IO[bytes], file), finish
        finally:
            if replaced:
                with contextlib.suppress(FileNotFoundError):
                    waiting.unlink()


def _beside(place: Path) -> Path:
    """A name that no other writer has, of this process or another."""
    start = os.fsdecode(os.fsencode(place.name)[:KEPT])
    return place.with_name(f".{start}.{os.getpid()}.{next(_numbers)}")


def refuse_another(path: str | os.PathLike[str], kind: str, is_one: Callable[[bytes], bool]) -> None:
    """Raises ForeignFileError where a regular file that is not of this kind has the name; OSError for one that cannot be
    read."""
    given = os.fspath(path)
    if not os.path.isfile(given):
        return
    with open(given, "rb") as there:
        head = there.read(HEAD)
    if head and not is_one(head):
        raise ForeignFileError(f"{given}: already exists and is not a {kind}; it is not replaced")


def _mode(place: Path) -> int | None:
    """The file's mode, None if there is none."""
    try:
        return place.stat().st_mode
    except OSError:
        return None


class _Named(io.FileIO):
    """A file whose errors, such as a full disk, name it as the user did."""

    def __init__(self, place: Path, given: str) -> None:
        super().__init__(place, "w")
        self._given = given

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._given) from None
