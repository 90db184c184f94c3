"""Object files kept on disk: their names, what these depend on, and the seal that proves a file whole.

Owns the format; where a folder or a disk cannot be used it says so once and keeps nothing. Must not know how code is
made.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import struct
from pathlib import Path

import llvmlite
import llvmlite.binding as llvm

from pyggml import sources
from pyggml.cachedir import PrivateFolder, not_kept
from pyggml.errors import CacheError
from pyggml.jit import machine
from pyggml.jit.compiling import Code
from pyggml.jit.spec import Spec

MAGIC = b"PYGGMLK2"
SEALED = 8 + 32  # bytes before the body: MAGIC and a SHA-256 digest
_CHANGES_CODE = ("NUMBA_OPT", "NUMBA_LOOP_VECTORIZE", "NUMBA_SLP_VECTORIZE", "NUMBA_DEBUGINFO")
_FORGET_AFTER = 30 * 86400  # seconds after which a kernel made from other sources is deleted

COMMON = ("jit/compiling.py", "jit/machine.py", "jit/spec.py", "steps.py", "dtypes.py", "simd")
"""What every kernel is made with."""


def source_files(module: str) -> tuple[Path, ...]:
    """All texts that a module's kernels are made from."""
    return sources.files(module, COMMON)


def source_hash(module: str) -> str:
    """Of those texts."""
    return sources.digest(module, COMMON)


@functools.cache
def folder() -> PrivateFolder:
    """Named by what all machine code depends on: CPU, versions, settings. A file in it is named by its sources too."""
    from importlib.metadata import version

    settings = [f"{name}={os.environ[name]}" for name in _CHANGES_CODE if name in os.environ]
    versions = version("numba"), llvmlite.__version__
    parts = (*machine.target(), machine.level(), llvm.get_default_triple(), *versions, *settings)
    return PrivateFolder("kernels", hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20])


def _seal(spec: Spec, body: bytes) -> bytes:
    """Proves that a file is whole, and this kernel's."""
    parts = (folder().path.name.encode(), repr(tuple(spec)).encode(), source_hash(spec.full_module).encode(), body)
    return hashlib.sha256(b"\0".join(parts)).digest()


def file_name(spec: Spec) -> str:
    """Of the kernel's object file in `folder`."""
    return f"{spec.label}.{source_hash(spec.full_module)[:12]}.o"


def load(spec: Spec) -> Code | None:
    """None when there is no such file, a damaged one, that of another kernel, or one that others may have written."""
    try:
        data = folder().read(file_name(spec))
    except CacheError as why:
        not_kept(str(why))
        return None
    if data is None:
        return None
    body = data[SEALED:]
    if data[:8] != MAGIC or _seal(spec, body) != data[8:SEALED]:
        return None
    (length,) = struct.unpack_from("<I", body)
    return Code(body[4 : 4 + length].decode(), body[4 + length :])


def save(spec: Spec, code: Code) -> None:
    """Keep the code, if that is possible; older files of the kernel are let go."""
    name = code.symbol.encode()
    body = struct.pack("<I", len(name)) + name + code.object_file
    file = file_name(spec)
    try:
        folder().write(file, MAGIC + _seal(spec, body) + body)
        folder().tidy(re.compile(rf"{re.escape(spec.label)}\.\w{{12}}\.o"), file, _FORGET_AFTER)
    except CacheError as why:
        not_kept(str(why))
