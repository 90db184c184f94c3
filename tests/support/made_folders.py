"""Folders of files that tests make and keep, each named by what it was made of: of those that nobody uses any more none stays."""

import hashlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from peer_build import locked

UNUSED = 2 * 60 * 60
"""Seconds after which a folder goes."""
DIGITS = 16


def made(root: Path, made_of: str, make: Callable[[Path], None], prefix: str = "") -> Path:
    """The folder in `root` of what is made of this; when it is new, `make` fills it. One process does, the others wait."""
    root.mkdir(parents=True, exist_ok=True)
    folder = root / f"{prefix}{hashlib.sha256(made_of.encode()).hexdigest()[:DIGITS]}"
    with locked(root / "lock"):
        if not folder.exists():
            fresh = root / f"fresh.{os.getpid()}"
            shutil.rmtree(fresh, ignore_errors=True)  # of a process that ended too early
            fresh.mkdir()
            make(fresh)
            fresh.rename(folder)
        _keep(folder, prefix + DIGITS * "[0-9a-f]")
    return folder


def _keep(folder: Path, like: str) -> None:
    """It is in use now; its neighbours whose names are `like` that (a pattern) go when they are not, and those that were
    never finished."""
    os.utime(folder)
    for other in (*folder.parent.glob(like), *folder.parent.glob("fresh.*")):
        if time.time() - other.stat().st_mtime > UNUSED:
            shutil.rmtree(other, ignore_errors=True)
