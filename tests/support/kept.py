"""What tests make once and keep in the cache folder, under a name that says all that it depends on."""

import functools
import hashlib
import re
from collections.abc import Callable
from pathlib import Path

from pyggml.cachedir import PrivateFolder

SEAL = 32  # bytes of a SHA-256 digest
FORMAT = b"2\0"  # of the files
LARGEST = 1 << 30  # bytes; what is larger is made each time
FORGET_AFTER = 30 * 86400  # seconds since it was made


def _seal(data: bytes) -> bytes:
    return hashlib.sha256(FORMAT + data).digest()


def kept(name: str, make: Callable[[], bytes], *folder: str) -> bytes:
    """The bytes of this name; made where there are none, or damaged ones. Two processes may make the same at once."""
    place = PrivateFolder(*folder)
    data = place.read(name)
    if data is not None and _seal(data[SEAL:]) == data[:SEAL]:
        return data[SEAL:]
    made = make()
    if len(made) <= LARGEST:
        place.write(name, _seal(made) + made)
        place.tidy(re.compile(".*"), name, FORGET_AFTER)
    return made


def file_digest(path: Path) -> str:
    """Of the file's bytes; read once a process while size, time of change and place stay the same."""
    found = path.stat()
    return _digest(str(path.resolve()), found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


@functools.cache
def _digest(path: str, *_: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
