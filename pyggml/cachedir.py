"""Where files that can be made again are kept, and which of them may be trusted as one's own.

Code that is run comes out of a `PrivateFolder`: it and its files belong to this user (or to root), nobody else may
write them, and no file is reached through a link.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from pyggml.errors import CacheError

log = logging.getLogger(__name__)

_OURS = os.O_CLOEXEC if hasattr(os, "O_CLOEXEC") else 0
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # a FIFO of that name is no file, and nothing to wait for
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_TEMPORARY = ".new-"
_FORGOTTEN = 86400  # seconds after which a temporary file has nobody who still writes it


def cache_root() -> Path:
    """$PYGGML_CACHE, else $XDG_CACHE_HOME/pyggml, else ~/.cache/pyggml. Raises CacheError where there is no home."""
    root = os.environ.get("PYGGML_CACHE")
    if root:
        return Path(root)
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(base or Path.home() / ".cache") / "pyggml"
    except RuntimeError:
        raise CacheError("there is no home folder for the cache; set PYGGML_CACHE to a folder") from None


def cache_dir(name: str) -> Path:
    """The folder `name` ("kernels", "models", "rpc", "peer") under the cache root, made for this user alone if it is
    missing. Raises CacheError.
    """
    path = cache_root() / name
    try:
        _make(path)
    except OSError as error:
        raise CacheError(f"cache folder {path}: {error.strerror}; PYGGML_CACHE can name another") from None
    return path


def _make(path: Path) -> None:
    """The folders that are missing; those of ours with mode 0700, those above the root as the system makes them."""
    root = cache_root()
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        for part in [root, *(p for p in reversed(path.parents) if root in p.parents), path]:
            part.mkdir(mode=0o700, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), error.filename) from None


def others_may_write(found: os.stat_result) -> str | None:
    """Why a file or folder may hold what others wrote; None = only this user and root can write it."""
    if not hasattr(os, "geteuid"):  # a system with another kind of rights: the user's own folders are private there
        return None
    if found.st_uid not in (os.geteuid(), 0):
        return f"it belongs to user {found.st_uid}, not to {os.geteuid()}"
    if found.st_mode & _OTHERS_WRITE:
        return f"others may write it (mode {stat.S_IMODE(found.st_mode):04o})"
    return None


@functools.cache
def warn_not_kept(why: str) -> None:
    """Log that kernels are not kept, and why; each reason once a process."""
    log.warning("kernel cache %s: kernels are compiled for this run only", why)


class PrivateFolder:
    """A folder under the cache root. Files are read, written and listed through the folder's own descriptor, after a
    look at its owner and mode, so that nothing can be put in its place in between.

    All methods raise CacheError when the folder cannot be used: it is not there and cannot be made, or others may
    write it.
    """

    def __init__(self, *parts: str) -> None:
        self.path = cache_root().joinpath(*parts)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int | None]:
        """The folder's descriptor; None where the system has none for folders."""
        try:
            _make(self.path)
            if os.open not in os.supports_dir_fd:
                yield None
                return
            folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | _OURS)
        except OSError as error:
            raise CacheError(f"{self.path}: {error.strerror}") from None
        try:
            why = others_may_write(os.fstat(folder))
            if why is not None:
                raise CacheError(f"{self.path}: {why}")
            yield folder
        finally:
            os.close(folder)

    def _file(self, folder: int | None, name: str, flags: int) -> int:
        where = name if folder is not None else str(self.path / name)
        return os.open(where, flags | _OURS | _NO_LINK | _NO_WAIT, 0o600, dir_fd=folder)

    def check(self) -> None:
        """Make the folder if it is missing. Raises CacheError as all methods do."""
        with self._opened():
            pass

    def read(self, name: str) -> bytes | None:
        """The file's bytes; None for what is not there, not readable, no regular file, or may be others' work."""
        with self._opened() as folder:
            try:
                file = self._file(folder, name, os.O_RDONLY)
            except OSError:
                return None
            with open(file, "rb") as stream:
                found = os.fstat(file)
                if not stat.S_ISREG(found.st_mode) or others_may_write(found):
                    return None
                try:
                    return stream.read()
                except OSError:
                    return None

    def write(self, name: str, data: bytes) -> None:
        """Give a file of mode 0600 this name when it is complete; what had the name before is replaced, not written to.
        Raises CacheError also when there is no room."""
        with self._opened() as folder:
            temporary = f"{_TEMPORARY}{secrets.token_hex(8)}"
            try:
                file = self._file(folder, temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
                try:
                    with open(file, "wb") as stream:
                        stream.write(data)
                    self._replace(folder, temporary, name)
                except BaseException:
                    self._remove(folder, temporary)
                    raise
            except OSError as error:
                raise CacheError(f"{self.path}: {error.strerror}") from None

    def lock_file(self, name: str) -> int:
        """A descriptor of an empty file to lock. Raises CacheError."""
        with self._opened() as folder:
            try:
                file = self._file(folder, name, os.O_RDWR | os.O_CREAT)
                if not stat.S_ISREG(os.fstat(file).st_mode):
                    os.close(file)
                    raise CacheError(f"{self.path / name}: not a file")
                return file
            except OSError as error:
                raise CacheError(f"{self.path / name}: {error.strerror}") from None

    def tidy(self, names: re.Pattern[str], keep: str, seconds: float) -> None:
        """Delete files of such names, but for `keep`, that nobody has written for so long, and forgotten temporary ones."""
        with self._opened() as folder, contextlib.suppress(OSError):
            now = time.time()
            for name in os.listdir(folder if folder is not None else self.path):
                named = name != keep and names.fullmatch(name) is not None
                limit = seconds if named else _FORGOTTEN
                if named or name.startswith(_TEMPORARY):
                    with contextlib.suppress(OSError):
                        where = name if folder is not None else str(self.path / name)
                        if now - os.stat(where, dir_fd=folder, follow_symlinks=False).st_mtime > limit:
                            self._remove(folder, name)

    def _replace(self, folder: int | None, old: str, new: str) -> None:
        if folder is None:
            os.replace(self.path / old, self.path / new)
        else:
            os.replace(old, new, src_dir_fd=folder, dst_dir_fd=folder)

    def _remove(self, folder: int | None, name: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(name if folder is not None else self.path / name, dir_fd=folder)
