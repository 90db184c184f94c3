"""Weights kept on disk, so that a model that was sent once need not travel again.

Owns the folder and the hash. Clients ask with a 64-bit FNV-1a alone, which proves nothing: whoever likes makes other
contents of the same hash in a blink. So an entry belongs to the client that sent it, is found by hash *and* length, is
handed to that client alone, and only while its bytes have the BLAKE2b digest that they had when they came. An entry
that has not is removed, and the client sends its bytes again. The folder has a limit; what was not used for longest
goes first.

    OWNER-HASH-LENGTH      hexadecimal digits; a file of mode 0600
    | magic 16 bytes | BLAKE2b-256 of the content 32 bytes | zeros 16 bytes | content |

Contents that several clients sent are one file with several names.
"""

import contextlib
import hashlib
import io
import logging
import os
import re
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np

from pyggml.cachedir import others_may_write
from pyggml.errors import CacheError
from pyggml.kernels.cpu.hash import fnv1a

Bytes: TypeAlias = bytes | bytearray | memoryview

MAGIC = b"pyggml weights 1"
HEADER = 64
UNFINISHED = ".new-"  # how files that are being written are called
ABANDONED = 3600  # seconds after which nobody is writing them any more
SMALLEST = 1 << 20  # bytes of a content that is worth a file; stock clients ask for more than ten times as many
LIMIT = 64 << 30  # bytes of all files, or half of the disk's free space where that is less
NAME = re.compile(r"[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{1,16}")
OLD_NAME = re.compile(r"[0-9a-f]{16}")  # of a time when entries were proved by their hash alone
CHUNK = 1 << 24

log = logging.getLogger("pyggml.rpc")


def content_hash(data: Bytes) -> int:
    """64-bit FNV-1a, which SET_TENSOR_HASH asks with (ggml-rpc.cpp: fnv_hash)."""
    return fnv1a(np.frombuffer(data, np.uint8))


class _File(NamedTuple):
    path: Path
    inode: int
    size: int
    used: float


class WeightCache:
    """`limit`: bytes of all files (None: LIMIT). Raises CacheError for a folder that cannot be made, or that others may
    write."""

    def __init__(self, folder: Path, limit: int | None = None, smallest: int = SMALLEST) -> None:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            why = others_may_write(os.stat(folder))
        except OSError as error:
            raise CacheError(f"weight cache {folder}: {error.strerror}") from None
        if why is not None:
            raise CacheError(f"weight cache {folder}: {why}")
        self.folder = folder
        self.limit = limit if limit is not None else min(LIMIT, (self.held() + shutil.disk_usage(folder).free) // 2)
        self._smallest = smallest
        self._lock = threading.Lock()
        for name in os.listdir(folder):
            with contextlib.suppress(OSError):
                found = os.lstat(folder / name)
                left = name.startswith(UNFINISHED) and time.time() - found.st_mtime > ABANDONED
                if stat.S_ISREG(found.st_mode) and (left or OLD_NAME.fullmatch(name)):
                    os.unlink(folder / name)

    def path(self, owner: str, key: int, length: int) -> Path:
        """Where an entry lies; its name says whose it is, its hash and its bytes."""
        return self.folder / f"{hashlib.blake2b(owner.encode(), digest_size=16).hexdigest()}-{key:016x}-{length:x}"

    def held(self) -> int:
        """Bytes of all files; a content with several names counts once."""
        return sum({file.inode: file.size for file in self._files()}.values())

    def load(self, owner: str, key: int, memory: memoryview) -> bool:
        """Read what this owner sent, of this hash and of the memory's length, into `memory`. False when there is nothing,
        or when it is damaged, which removes it."""
        path = self.path(owner, key, len(memory))
        descriptor = _open(path)
        if descriptor is None:
            return False
        try:
            with open(descriptor, "rb", buffering=0) as file:
                header = file.read(HEADER) or b""
                size = os.fstat(descriptor).st_size
                sound = len(header) == HEADER and header.startswith(MAGIC) and size == HEADER + len(memory)
                sound = sound and _read(file, memory) == header[16:48]
        except OSError as error:
            log.warning("weight cache: %s: %s", path, error.strerror)
            return False
        if not sound:
            log.warning("weight cache: %s is damaged; removed", path)
            with contextlib.suppress(OSError):
                path.unlink()
            return False
        with contextlib.suppress(OSError):
            os.utime(path, follow_symlinks=False)
        return True

    def store(self, owner: str, data: Bytes) -> None:
        """Keep a content that this owner sent. A full disk is a warning: the cache is a convenience."""
        size = HEADER + len(data)
        if len(data) < self._smallest or size > self.limit:
            return
        path = self.path(owner, content_hash(data), len(data))
        digest = hashlib.blake2b(data, digest_size=32).digest()
        try:
            with self._lock:
                if _digest(path) == digest:
                    os.utime(path, follow_symlinks=False)
                elif not self._link(path, digest):
                    self._make_room(size)
                    self._write(path, digest, data)
        except OSError as error:
            log.warning("weight cache: cannot keep %s: %s", path, error.strerror)

    def _link(self, path: Path, digest: bytes) -> bool:
        """Give the same content of another owner this name too."""
        ending = path.name.partition("-")[2]
        for file in self._files():
            if file.path != path and file.path.name.endswith(ending) and _digest(file.path) == digest:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
                    os.link(file.path, path, follow_symlinks=False)
                    return True
        return False

    def _make_room(self, size: int) -> None:
        """Remove what was not used for longest, until `size` more bytes are within the limit."""
        files = sorted(self._files(), key=lambda file: file.used)
        while files and sum({file.inode: file.size for file in files}.values()) + size > self.limit:
            oldest = files.pop(0)
            log.debug("weight cache: %s makes room", oldest.path)
            with contextlib.suppress(OSError):
                oldest.path.unlink()

    def _write(self, path: Path, digest: bytes, data: Bytes) -> None:
        handle, temporary = tempfile.mkstemp(prefix=UNFINISHED, dir=self.folder)
        try:
            with open(handle, "wb", buffering=0) as file:
                for piece in (MAGIC + digest + bytes(16), data):
                    view = memoryview(piece)
                    while view:
                        view = view[file.write(view) :]
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        log.debug("weight cache: %s: %d bytes", path, len(data))

    def _files(self) -> Iterator[_File]:
        with contextlib.suppress(OSError), os.scandir(self.folder) as entries:
            for entry in entries:
                if not NAME.fullmatch(entry.name):
                    continue
                with contextlib.suppress(OSError):  # another server has removed it meanwhile
                    found = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(found.st_mode):
                        yield _File(self.folder / entry.name, found.st_ino, found.st_size, found.st_mtime)


def _open(path: Path) -> int | None:
    """A descriptor of a file of ours: no link, no FIFO that nobody writes, nothing that others may write."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        descriptor = os.open(path, flags)
    except OSError:
        return None
    found = os.fstat(descriptor)
    if stat.S_ISREG(found.st_mode) and others_may_write(found) is None:
        return descriptor
    os.close(descriptor)
    return None


def _digest(path: Path) -> bytes | None:
    """What the file's header says of its content; None when it is not of its length, or no file of ours."""
    descriptor = _open(path)
    if descriptor is None:
        return None
    with open(descriptor, "rb", buffering=0) as file:
        header = file.read(HEADER) or b""
        length = HEADER + int(path.name.rpartition("-")[2], 16)
        sound = header.startswith(MAGIC) and len(header) == HEADER and os.fstat(descriptor).st_size == length
    return header[16:48] if sound else None


def _read(file: io.RawIOBase, memory: memoryview) -> bytes:
    """Fill `memory` from the file; the digest of what was read."""
    hashed = hashlib.blake2b(digest_size=32)
    done = 0
    while done < len(memory):
        count = file.readinto(memory[done : done + CHUNK])
        if not count:
            break
        hashed.update(memory[done : done + count])
        done += count
    return hashed.digest()
