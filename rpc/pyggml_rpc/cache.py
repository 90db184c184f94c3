"""Weights kept on disk by their hash, so that a model that was sent once need not travel again.

Owns the folder and the hash; it must not know tensors or connections. A file is named by the 16 hex digits of the 64-bit
FNV-1a of its bytes and holds nothing else, as the reference server's cache does. A file counts only if its bytes have
that hash: a truncated one is removed. The hash is no defence against a malicious client, who can make two contents
of one hash: keep `-c` for networks whose clients trust each other. What is there first stays.
"""

import contextlib
import logging
import os
import tempfile
import time
from pathlib import Path
from typing import TypeAlias

import numpy as np

from pyggml.kernels.cpu.hash import fnv1a

Bytes: TypeAlias = bytes | bytearray | memoryview

UNFINISHED = ".new-"  # how files that are being written are called
ABANDONED = 3600  # seconds after which nobody is writing them any more

log = logging.getLogger("pyggml.rpc")


def content_hash(data: Bytes) -> int:
    """64-bit FNV-1a, which SET_TENSOR_HASH asks with (ggml-rpc.cpp: fnv_hash)."""
    return fnv1a(np.frombuffer(data, np.uint8))


class WeightCache:
    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        for left in folder.glob(f"{UNFINISHED}*"):  # by a server that was killed
            with contextlib.suppress(OSError):
                if time.time() - left.stat().st_mtime > ABANDONED:
                    left.unlink()

    def path(self, key: int) -> Path:
        return self.folder / f"{key:016x}"

    def size(self, key: int) -> int | None:
        """Bytes kept under this hash; None when there are none."""
        try:
            return self.path(key).stat().st_size
        except OSError:
            return None

    def load(self, key: int, memory: memoryview) -> bool:
        """Read the content into `memory`, which must have its size. False, and the file removed, when it is not sound."""
        path = self.path(key)
        try:
            with open(path, "rb", buffering=0) as file:
                done = 0
                while done < len(memory) and (count := file.readinto(memory[done:])):
                    done += count
                sound = done == len(memory) and not file.read(1)
        except OSError as error:
            log.warning("weight cache: %s: %s", path, error)
            return False
        if sound and content_hash(memory) == key:
            return True
        log.warning("weight cache: %s does not have the hash that it is named by; removed", path)
        path.unlink(missing_ok=True)
        return False

    def store(self, data: Bytes) -> None:
        """Keep a content. A full disk is a warning: the cache is a convenience."""
        path = self.path(content_hash(data))
        if path.exists():
            return
        temporary = None
        try:
            handle, temporary = tempfile.mkstemp(prefix=UNFINISHED, dir=self.folder)
            with open(handle, "wb", buffering=0) as file:
                view = memoryview(data)
                while view:
                    view = view[file.write(view) :]
            os.replace(temporary, path)
            log.debug("weight cache: %s: %d bytes", path, len(data))
        except OSError as error:
            log.warning("weight cache: cannot keep %s: %s", path, error)
            if temporary is not None:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
