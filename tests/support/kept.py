"""What tests make once and keep in the cache folder, under a name that says all that it depends on."""

import functools
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


class Answers:
    """What a slow program says to many small questions, in one file. `depends`: all that answers depend on beside the
    question."""

    MOST = 200_000
    """So many are kept; of more, those that this run has asked for."""

    def __init__(self, name: str, depends: str, *folder: str) -> None:
        self._place = PrivateFolder(*folder)
        self._name = f"{name}-{hashlib.sha256(depends.encode()).hexdigest()[:32]}.json"
        data = self._place.read(self._name) or b""
        self._before: dict[str, str] = json.loads(data[SEAL:]) if _seal(data[SEAL:]) == data[:SEAL] else {}
        self._asked: dict[str, str] = {}

    def get(self, question: str, make: Callable[[], Any]) -> Any:
        """The answer, as JSON gives it back; `make` is called where there is none."""
        key = hashlib.sha256(question.encode()).hexdigest()[:32]
        found = self._asked.get(key) or self._before.get(key)
        self._asked[key] = found = json.dumps(make()) if found is None else found
        return json.loads(found)

    def write(self) -> None:
        """Keep what is new."""
        if self._asked.keys() <= self._before.keys():
            return
        known = self._before | self._asked
        data = json.dumps(known if len(known) <= self.MOST else self._asked).encode()
        self._place.write(self._name, _seal(data) + data)
        self._place.tidy(re.compile(rf"{re.escape(self._name[:-37])}.*"), self._name, FORGET_AFTER)


def file_digest(path: Path) -> str:
    """Of the file's bytes; read once a process while size, time of change and place stay the same."""
    found = path.stat()
    return _digest(str(path.resolve()), found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


@functools.cache
def _digest(path: str, *_: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
