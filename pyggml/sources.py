"""Which files a kernel is made from: its own, those of kernels and quants that it imports, and so on.

Owns how imports are followed, and the digest of all these texts, which names files in the caches of machine code. Must
not know a compiler: a warm start asks for digests and compiles nothing.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent
_IMPORT = re.compile(r"^[ \t]*from (pyggml\.(?:kernels|quants)[\w.]*) import (\([^)]*\)|[^\n]*)", re.MULTILINE)


@functools.cache
def text(path: Path) -> bytes:
    return path.read_bytes()


@functools.cache
def common(names: tuple[str, ...]) -> tuple[Path, ...]:
    """Files, and folders as all the files in them, by their names in the package: what every kernel is made with."""
    found: list[Path] = []
    for name in names:
        path = ROOT / name
        found += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return tuple(found)


def module_file(name: str) -> Path | None:
    """The file of one of our modules; None = that is no module."""
    path = ROOT.parent.joinpath(*name.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def _imports(path: Path) -> Iterator[Path]:
    """Files of kernels and quants that a file imports; of a package whose own names are wanted, all files."""
    for match in _IMPORT.finditer(text(path).decode()):
        names = re.sub(r"\bas\s+\w+", "", match[2].partition("#")[0])
        for word in re.split(r"[\s,()]+", names):
            file = module_file(f"{match[1]}.{word}") if word else None
            if file is None and word:
                file = module_file(match[1])
                if file is not None and file.name == "__init__.py":
                    yield from sorted(file.parent.glob("*.py"))
            if file is not None:
                yield file


@functools.cache
def files(module: str, names: tuple[str, ...]) -> tuple[Path, ...]:
    """All that a module's kernels are made from; `names` as for `common`. The module may be none of ours."""
    if module.startswith("pyggml."):
        own = module_file(module)
    else:
        found = importlib.util.find_spec(module)
        own = Path(found.origin) if found is not None and found.origin is not None else None
    assert own is not None, module
    seen = {own}
    left = [own]
    while left:
        fresh = set(_imports(left.pop())) - seen
        seen |= fresh
        left += fresh
    return (*common(names), *sorted(seen))


@functools.cache
def digest(module: str, names: tuple[str, ...]) -> str:
    """Of the texts of `files`."""
    made = hashlib.sha256()
    for path in files(module, names):
        made.update(b"%s\0%d\0" % (path.name.encode(), len(text(path))) + text(path))
    return made.hexdigest()
