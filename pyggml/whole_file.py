"""Files that appear when they are complete, or not at all. Must not know what is in them."""

import contextlib
import errno
import io
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[tuple[IO[bytes], Callable[[], None]]]:
    """A file to write, and the function that gives it its name; without that call it is gone at the end.

    What is no regular file (a pipe, /dev/null) is written as it is, never replaced. Raises OSError with the path as it
    was given.
    """
    given, place = os.fspath(path), Path(os.path.realpath(path))
    kind = _kind(place)
    if kind is not None and stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), given)
    replaced = kind is None or stat.S_ISREG(kind)
    waiting = place.with_name(f".{place.name}.{os.getpid()}") if replaced else place
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


def _kind(place: Path) -> int | None:
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
