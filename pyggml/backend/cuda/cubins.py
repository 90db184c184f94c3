"""Kernels compiled here for a machine that has another compiler or none: `python -m pyggml.backend.cuda.cubins make FOLDER
--sm 90` here, `python -m pyggml.backend.cuda.cubins place FOLDER` there, with the same sources.

Owns that folder. Names in the kernel cache depend on the versions that are installed; in the folder kernels are named by
what they are.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from pyggml.backend.cuda import compiled
from pyggml.errors import DeviceError, PyggmlError
from pyggml.kernels.cuda.every import every
from pyggml.kernels.cuda.spec import Spec

LIST = "kernels.json"
ADDED = "SPECS"
"""What a module of further kernels calls its list."""


def make(folder: Path, cc: tuple[int, int], specs: Sequence[Spec]) -> int:
    """Compile kernels for this compute capability, those apart that the cache has; -> bytes in all. Raises DeviceError,
    OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    size = 0
    for spec in specs:
        image = compiled.cubin(spec, cc)
        (folder / f"{spec.label}.cubin").write_bytes(image)
        size += len(image)
    kernels = [[*spec, compiled.sources_of(spec)] for spec in specs]
    (folder / LIST).write_text(json.dumps({"compute capability": cc, "kernels": kernels}))
    return size


def place(folder: Path) -> tuple[int, tuple[int, int]]:
    """Put a folder's kernels into this machine's cache, under the names that are looked for here -> how many, for which
    compute capability. Raises DeviceError where they were made of other sources than those here, CacheError, OSError."""
    try:
        listed = json.loads((folder / LIST).read_text())
        major, minor = (int(n) for n in listed["compute capability"])
        kernels = [(Spec(module, factory, tuple(args)), str(made)) for module, factory, args, made in listed["kernels"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DeviceError(f"{folder / LIST} is no list of kernels: {error!r}") from None
    other = [spec.label for spec, made in kernels if compiled.sources_of(spec) != made]
    if other:
        raise DeviceError(
            f"{folder}: {len(other)} of {len(kernels)} kernels, such as {other[0]}, were made of other sources than those here"
        )
    for spec, _ in kernels:
        compiled.keep(spec, (major, minor), (folder / f"{spec.label}.cubin").read_bytes())
    return len(kernels), (major, minor)


def chosen(words: Sequence[str], modules: Sequence[str]) -> list[Spec]:
    """Every kernel, and those of further modules, whose label holds one of the words, if there are any."""
    specs = [*every(), *(spec for module in modules for spec in getattr(importlib.import_module(module), ADDED))]
    found = [spec for spec in dict.fromkeys(specs) if not words or any(word in spec.label for word in words)]
    if not found:
        raise DeviceError(f"no kernel's name has {' or '.join(words)} in it")
    return found


def capability(text: str) -> tuple[int, int]:
    """90 and 9.0 are (9, 0), 120 is (12, 0)."""
    major, point, minor = text.partition(".")
    if not point:
        major, minor = text[:-1], text[-1:]
    if not (major.isdigit() and minor.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is no compute capability, such as 90 or 9.0")
    return int(major), int(minor)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pyggml.backend.cuda.cubins", description=(__doc__ or "").split("\n\n")[0]
    )
    what = parser.add_subparsers(dest="what", required=True)
    making = what.add_parser("make", help="compile kernels into a folder; no GPU is needed")
    placing = what.add_parser("place", help="put a folder's kernels into this machine's cache; no compiler is needed")
    for one in (making, placing):
        one.add_argument("folder", type=Path)
    making.add_argument("--sm", type=capability, default=(9, 0), metavar="CC", help="compute capability (90)")
    making.add_argument(
        "--only", nargs="+", default=(), metavar="WORD", help="those whose name has one of the words in it"
    )
    making.add_argument(
        "--also", nargs="+", default=(), metavar="MODULE", help=f"modules with further kernels, in a list {ADDED}"
    )
    args = parser.parse_args(argv)
    try:
        if args.what == "place":
            count, cc = place(args.folder)
            print(f"{count} kernels for compute capability {cc[0]}.{cc[1]} placed")
            return 0
        specs = chosen(args.only, args.also)
        size = make(args.folder, args.sm, specs)
        print(f"{len(specs)} kernels, {size >> 10} KiB, in {args.folder}")
        return 0
    except (PyggmlError, OSError, ImportError, AttributeError) as error:
        print(f"cubins: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
