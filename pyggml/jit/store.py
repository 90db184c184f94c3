"""Object files kept on disk, and the assembly of those that somebody has read: their names, what these depend on, and the
seal that proves a file whole.

Owns the format; where a folder or a disk cannot be used it says so once and keeps nothing.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import struct
import zlib

import llvmlite
import llvmlite.binding as llvm

from pyggml import sources
from pyggml.cachedir import PrivateFolder, warn_not_kept
from pyggml.errors import CacheError
from pyggml.jit import machine
from pyggml.jit.added import modules_of
from pyggml.jit.compiling import Code
from pyggml.jit.spec import Spec

MAGIC = {"o": b"PYGGMLK2", "s": b"PYGGMLS1"}
SEALED = 8 + 32  # bytes before the body: MAGIC and a SHA-256 digest
_CHANGES_CODE = ("NUMBA_OPT", "NUMBA_LOOP_VECTORIZE", "NUMBA_SLP_VECTORIZE", "NUMBA_DEBUGINFO")
_FORGET_AFTER = 30 * 86400  # seconds after which a kernel made from other sources is deleted

COMMON = ("jit/compiling.py", "jit/machine.py", "jit/spec.py", "steps.py", "dtypes.py", "simd")
"""What every kernel is made with."""


def source_hash(spec: Spec) -> str:
    """Of the texts of its module and of those that another package added for it."""
    found = sources.digest(spec.full_module, COMMON)
    more = [sources.digest(module, ()) for module in modules_of(spec)]
    return hashlib.sha256("\0".join([found, *more]).encode()).hexdigest() if more else found


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
    parts = (folder().path.name.encode(), repr(tuple(spec)).encode(), source_hash(spec).encode(), body)
    return hashlib.sha256(b"\0".join(parts)).digest()


def file_name(spec: Spec, ending: str = "o") -> str:
    """Of the kernel's object file in `folder`, or of its assembly (ending "s")."""
    return f"{spec.label}.{source_hash(spec)[:12]}.{ending}"


def _read(spec: Spec, ending: str) -> bytes | None:
    """None when there is no such file, a damaged one, that of another kernel, or one that others may have written."""
    try:
        data = folder().read(file_name(spec, ending))
    except CacheError as why:
        warn_not_kept(str(why))
        return None
    if data is None:
        return None
    body = data[SEALED:]
    return body if data[:8] == MAGIC[ending] and _seal(spec, body) == data[8:SEALED] else None


def _write(spec: Spec, ending: str, body: bytes) -> None:
    """Keep it, if that is possible; older files of the kernel are let go."""
    file = file_name(spec, ending)
    try:
        folder().write(file, MAGIC[ending] + _seal(spec, body) + body)
        folder().tidy(re.compile(rf"{re.escape(spec.label)}\.\w{{12}}\.{ending}"), file, _FORGET_AFTER)
    except CacheError as why:
        warn_not_kept(str(why))


def load(spec: Spec) -> Code | None:
    """The kernel's code; None where it is not kept."""
    body = _read(spec, "o")
    if body is None:
        return None
    (length,) = struct.unpack_from("<I", body)
    return Code(body[4 : 4 + length].decode(), body[4 + length :])


def save(spec: Spec, code: Code) -> None:
    """Keep the code, if that is possible."""
    name = code.symbol.encode()
    _write(spec, "o", struct.pack("<I", len(name)) + name + code.object_file)


def load_assembly(spec: Spec) -> str | None:
    """The kernel's code as text; None where it is not kept."""
    body = _read(spec, "s")
    return None if body is None else zlib.decompress(body).decode()


def save_assembly(spec: Spec, text: str) -> None:
    """Keep the text, if that is possible."""
    _write(spec, "s", zlib.compress(text.encode(), 1))
