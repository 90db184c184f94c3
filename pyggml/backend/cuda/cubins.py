"""Kernels compiled here for a machine that has another compiler or none, with the same sources.

Owns the folder that is carried (`make`) and what becomes of it there (`place`). Names in the kernel cache depend on the
versions that are installed; in the folder kernels are named by what they are.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from pyggml.backend.cuda import compiled
from pyggml.backend.cuda.toolkit import capabilities
from pyggml.errors import DeviceError
from pyggml.kernels.cuda.every import every
from pyggml.kernels.cuda.spec import Spec, full_name

LIST = "kernels.json"
ADDED = "SPECS"
"""What a module of further kernels calls its list."""


def make(
    folder: Path, cc: tuple[int, int], specs: Sequence[Spec], made: Callable[[int], object] = lambda count: None
) -> int:
    """Compile kernels for this compute capability, those apart that the cache has; -> bytes in all. `made` is told how many
    are there. Raises DeviceError, OSError."""
    if (known := capabilities()) and cc not in known:
        listed = ", ".join(f"{major}.{minor}" for major, minor in known)
        raise DeviceError(
            f"no GPU of compute capability {cc[0]}.{cc[1]} is known to the compiler here, which has {listed}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    size, kernels = 0, []
    for count, spec in enumerate(specs):
        made(count)
        image = compiled.cubin(spec, cc)
        (folder / f"{spec.label}.cubin").write_bytes(image)
        kernels.append([*spec, compiled.sources_of(spec), hashlib.sha256(image).hexdigest()])
        size += len(image)
    (folder / LIST).write_text(json.dumps({"compute capability": cc, "kernels": kernels}))
    return size


def place(folder: Path) -> tuple[int, tuple[int, int]]:
    """Put a folder's kernels into this machine's cache, under the names that are looked for here -> how many, for which
    compute capability. Nothing is put there unless all is whole. Raises DeviceError where they were made of other sources than
    those here, or a file is not the one that was made, CacheError, OSError."""
    try:
        listed = json.loads((folder / LIST).read_text())
        major, minor = (int(n) for n in listed["compute capability"])
        kernels = [
            (Spec(str(module), str(factory), tuple(args)), made, digest)
            for module, factory, args, made, digest in listed["kernels"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise DeviceError(f"{folder / LIST} is no list of kernels: {error!r}") from None
    other = [spec.label for spec, made, _ in kernels if not _is_here(spec) or compiled.sources_of(spec) != made]
    if other:
        raise DeviceError(
            f"{folder}: {len(other)} of {len(kernels)} kernels, such as {other[0]}, were made of other sources than those here"
        )
    images = [(folder / f"{spec.label}.cubin").read_bytes() for spec, _, _ in kernels]
    for (spec, _, digest), image in zip(kernels, images, strict=True):
        if hashlib.sha256(image).hexdigest() != digest:
            raise DeviceError(
                f"{folder / spec.label}.cubin is not the file that was made there: {len(image)} bytes of another hash"
            )
    for (spec, _, _), image in zip(kernels, images, strict=True):
        compiled.keep(spec, (major, minor), image)
    return len(kernels), (major, minor)


def _is_here(spec: Spec) -> bool:
    try:
        return importlib.util.find_spec(full_name(spec.module)) is not None
    except (ImportError, ValueError):
        return False


def select_kernels(words: Sequence[str], modules: Sequence[str]) -> list[Spec]:
    """Every kernel, and those of further modules, whose label holds one of the words, if there are any. Raises DeviceError."""
    specs = every()
    for module in modules:
        try:
            specs += getattr(importlib.import_module(module), ADDED)
        except (ImportError, AttributeError) as error:
            raise DeviceError(f"no kernels in {module}: {error}") from None
    found = [spec for spec in dict.fromkeys(specs) if not words or any(word in spec.label for word in words)]
    if not found:
        raise DeviceError(f"no kernel's name has {' or '.join(words)} in it")
    return found
