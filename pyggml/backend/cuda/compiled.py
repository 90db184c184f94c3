"""Cubins in the user's cache: each kernel is compiled once for each compute capability.

Owns the files and what their names depend on. Where all kernels are in the cache Numba is not imported.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import os

from pyggml import sources
from pyggml.backend.cuda.toolkit import find_library
from pyggml.cachedir import PrivateFolder, warn_not_kept
from pyggml.errors import CacheError, DeviceError
from pyggml.kernels.cuda.spec import Spec, full_name

ENTRY = b"pyggml_kernel"
_MAGIC = b"PYGGMLC1"
_FRONT_END = ("numba", "numba-cuda", "llvmlite")
_COMPILER = {
    "nvvm": ("nvidia-nvvm", "nvidia-cuda-nvcc-cu12"),
    "nvJitLink": ("nvidia-nvjitlink", "nvidia-nvjitlink-cu12"),
}
"""The packages that bring each library, of CUDA 13 and of CUDA 12."""


class Counts:
    """How many kernels this process compiled and how many it took from the cache."""

    compiled = 0
    loaded = 0


@functools.cache
def _versions() -> tuple[str, ...]:
    """Of all that machine code depends on."""
    found = _installed(*_FRONT_END)
    for library, packages in _COMPILER.items():
        found += _installed(*packages) or _of_a_toolkit(library)
    return tuple(found)


def _installed(*packages: str) -> list[str]:
    found = []
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{name} {importlib.metadata.version(name)}")
    return found


def _of_a_toolkit(library: str) -> list[str]:
    """A library of a toolkit that is no Python package (CUDA_HOME): the file that is loaded, which an update replaces."""
    path = find_library(library)
    if path is None:  # then nothing is compiled either
        return []
    status = os.stat(path)
    return [f"{path} {status.st_size} {status.st_mtime_ns}"]


_COMMON = ("kernels/cuda/device", "kernels/cuda/spec.py", "dtypes.py")
"""What every kernel is made with."""


def _sources(module: str) -> str:
    """Of all texts that a module's kernels are made of."""
    return sources.digest(full_name(module), _COMMON)


def sources_of(spec: Spec) -> str:
    """A digest of all texts that a kernel is made of."""
    return _sources(spec.module)


def key(spec: Spec, cc: tuple[int, int]) -> str:
    """What a cubin's file is named by: kernel, sources, versions, compute capability."""
    parts = (repr(tuple(spec)), _sources(spec.module), *_versions(), f"{cc[0]}.{cc[1]}")
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _place(spec: Spec, cc: tuple[int, int]) -> tuple[PrivateFolder, str]:
    """Folder and file. Raises CacheError."""
    return PrivateFolder("cuda", f"sm_{cc[0]}{cc[1]}"), f"{spec.label}-{key(spec, cc)}.cubin"


def cubin(spec: Spec, cc: tuple[int, int]) -> bytes:
    """The kernel's machine code. A cache that cannot be used costs time, not the run. Raises DeviceError when the
    compiler is not there."""
    try:
        folder, name = _place(spec, cc)
        found = _whole(folder.read(name))
    except CacheError as why:
        warn_not_kept(str(why))
        return _compile(spec, cc)
    if found is not None:
        Counts.loaded += 1
        return found
    image = _compile(spec, cc)
    try:
        keep(spec, cc, image)
    except CacheError as why:
        warn_not_kept(str(why))
    return image


def keep(spec: Spec, cc: tuple[int, int], image: bytes) -> None:
    """Put machine code into the cache, where `cubin` finds it. Raises CacheError."""
    folder, name = _place(spec, cc)
    folder.write(name, _MAGIC + hashlib.sha256(image).digest() + image)


def _whole(data: bytes | None) -> bytes | None:
    """The code in a file; None when there is no such file or a damaged one."""
    if data is None:
        return None
    image = data[40:]
    return image if data[:8] == _MAGIC and hashlib.sha256(image).digest() == data[8:40] else None


def _compile(spec: Spec, cc: tuple[int, int]) -> bytes:
    try:
        from pyggml.kernels.cuda.device import build
    except Exception as error:  # ImportError, and whatever a package of an unfit version does when it is imported
        raise DeviceError(f"kernels cannot be compiled: {_line(error)}; pip install 'pyggml[cuda]'") from None
    Counts.compiled += 1
    try:
        return build.code(spec, cc)
    except Exception as error:  # libNVVM, nvJitLink and the search for libdevice have no common one
        where = f"compute capability {cc[0]}.{cc[1]}"
        raise DeviceError(f"kernel {spec.label} cannot be compiled for {where}: {_line(error)}") from error


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
