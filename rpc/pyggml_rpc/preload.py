"""Weights out of the operator's own model files, which every client is handed by their hash.

Owns which tensors those are, and the proof that what is handed out is what was hashed. Files that no client can write need
no owner: that is `cache.py`'s, whose entries clients sent. A tensor is hashed when a client first asks for one of its
length, and read in pieces, never through a mapping: a file that is cut meanwhile is a line in the log, not a bus error.
"""

import errno
import hashlib
import io
import logging
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pyggml.errors import CacheError
from pyggml.gguf import GGUFFile
from pyggml.kernels.cpu.hash import OFFSET_BASIS, fnv1a
from pyggml.regular_file import open_regular

SMALLEST = 1 << 20  # bytes of a tensor; stock clients ask for more than ten times as many
CHUNK = 1 << 24
PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # what the process lacks for the moment says nothing of the file

log = logging.getLogger("pyggml.rpc")


class _ChangedError(Exception):
    """A file is no longer what it was."""


@dataclass(eq=False)
class _Entry:
    """A tensor of a file. `key`, its FNV-1a, and `digest`, its BLAKE2b-256, are there once it was read."""

    path: Path
    offset: int
    nbytes: int
    key: int | None = None
    digest: bytes = b""


class Preload:
    """Those of `paths`, GGUF files or the first parts of several. Raises GGUFError, and CacheError for a file that has
    no tensor of a size that clients ask for."""

    def __init__(self, paths: Sequence[str | os.PathLike[str]], smallest: int = SMALLEST) -> None:
        self._lock = threading.Lock()
        self._of_length: dict[int, list[_Entry]] = {}
        self.n_tensors = self.n_bytes = 0
        for path in {os.path.realpath(path): path for path in paths}.values():  # each once
            with GGUFFile.open(path) as file:
                large = [tensor for tensor in file.tensors.values() if tensor.nbytes >= smallest]
                for tensor in large:
                    # its absolute path: where the server was started does not matter later
                    entry = _Entry(tensor.path.absolute(), tensor.offset, tensor.nbytes)
                    self._of_length.setdefault(tensor.nbytes, []).append(entry)
                    self.n_tensors, self.n_bytes = self.n_tensors + 1, self.n_bytes + tensor.nbytes
            if not large:
                raise CacheError(f"{path}: no tensor has {smallest} bytes or more, the least that is kept ready")

    def find(self, key: int, length: int, gone: Callable[[], bool] = lambda: False) -> bool:
        """Whether there is such a tensor. Reads those of its length that were not read yet, until one is found, or nobody
        waits for it any more."""
        return self._entry(key, length, gone) is not None

    def load(self, key: int, memory: memoryview, gone: Callable[[], bool] = lambda: False) -> bool:
        """Read the tensor of this hash and of the memory's length into `memory`. False when there is none, or when its file
        has changed since it was hashed: it is then forgotten."""
        entry = self._entry(key, len(memory), gone)
        if entry is None:
            return False
        try:
            if self._read(entry, memory)[1] == entry.digest:
                return True
        except (OSError, _ChangedError) as reason:
            self._forget(entry, reason)
        else:
            self._forget(entry)
        return False

    def _entry(self, key: int, length: int, gone: Callable[[], bool]) -> _Entry | None:
        for entry in list(self._of_length.get(length, ())):
            if gone():
                return None
            with self._lock:  # one at a time: who comes second finds it hashed
                if entry.key is None:
                    try:
                        entry.key, entry.digest = self._read(entry, None)
                    except (OSError, _ChangedError) as reason:
                        self._forget(entry, reason)
                        continue
            if entry.key == key:
                return entry
        return None

    def _read(self, entry: _Entry, memory: memoryview | None) -> tuple[int, bytes]:
        """Its hash and its digest, of what is in the file now; into `memory` if there is one."""
        between = memory if memory is not None else memoryview(bytearray(min(CHUNK, entry.nbytes)))
        key, digest, done = OFFSET_BASIS, hashlib.blake2b(digest_size=32), 0
        with open_regular(entry.path) as file:
            assert isinstance(file, io.BufferedReader)
            file.seek(entry.offset)
            while done < entry.nbytes:
                start = done if memory is not None else 0
                part = between[start : start + min(CHUNK, entry.nbytes - done)]
                if file.readinto(part) != len(part):
                    raise _ChangedError
                if memory is None:
                    key = fnv1a(np.frombuffer(part, np.uint8), key)
                digest.update(part)
                done += len(part)
        return key, digest.digest()

    def _forget(self, entry: _Entry, reason: Exception | None = None) -> None:
        if isinstance(reason, OSError) and reason.errno in PASSING:
            return
        log.warning("%s: has changed: a tensor of %d bytes is handed out no more", entry.path, entry.nbytes)
        self._of_length[entry.nbytes] = [other for other in self._of_length[entry.nbytes] if other is not entry]
