"""Folders of files that tests make and keep, each named by what it was made of: of those that nobody uses any more none stays."""

import os
import shutil
import time
from pathlib import Path

UNUSED = 2 * 60 * 60
"""Seconds after which a folder goes."""


def keep(folder: Path, like: str) -> Path:
    """The folder, which is in use now; its neighbours whose names are `like` that (a pattern) go when they are not, and
    those that were never finished."""
    os.utime(folder)
    for other in (*folder.parent.glob(like), *folder.parent.glob("fresh.*")):
        if time.time() - other.stat().st_mtime > UNUSED:
            shutil.rmtree(other, ignore_errors=True)
    return folder
