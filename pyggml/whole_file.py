"""Files that appear when they are complete, or not at all. Must not know what is in them."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[tuple[IO[bytes], Callable[[], None]]]:
    """A file to write, and the function that gives it its name; without that call it is gone at the end.

    Raises OSError with the path as it was given.
    """
    waiting = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        waiting.touch()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    with open(waiting, "wb") as file:

        def finish() -> None:
            file.flush()
            os.replace(waiting, path)

        try:
            yield file, finish
        finally:
            with contextlib.suppress(FileNotFoundError):
                waiting.unlink()
