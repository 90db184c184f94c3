"""Which files a kernel is made from: its own, those of kernels and quants that it imports, and so on.

Owns how imports are followed, and the digest of the code in all these files, which names files in the caches of machine
code. Comments, docstrings and layout are no part of it: prose can be changed and every kernel is still found. Must not
know a compiler: a warm start asks for digests and compiles nothing.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from pyggml.cachedir import PrivateFolder
from pyggml.errors import CacheError

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


@functools.cache
def _imports(path: Path) -> frozenset[Path]:
    """Files of kernels and quants that a file imports; of a package whose own names are wanted, all files."""
    return frozenset(_each_import(path))


def _each_import(path: Path) -> Iterator[Path]:
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
        fresh = _imports(left.pop()) - seen
        seen |= fresh
        left += fresh
    return (*common(names), *sorted(seen))


# ---- what a file means


def code(source: bytes) -> str:
    """The syntax tree of a file without positions, comments and strings that stand alone, as docstrings do; the text
    itself where it is none of this Python's."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return repr(source)
    for node in ast.walk(tree):
        for name in ("body", "orelse", "finalbody"):
            block = getattr(node, name, None)
            if isinstance(block, list):
                setattr(node, name, [statement for statement in block if not _says_nothing(statement)])
    return ast.dump(tree)


def _says_nothing(statement: ast.AST) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


class _Known:
    """Digests of files' code by those of their texts, kept on disk: parsing a hundred files takes 0.3 s, reading them
    none. Keyed by all of the text, not by its time of change, so that no entry can be out of date."""

    ENTRIES = 2000  # 260 KB; the oldest go

    def __init__(self) -> None:
        self._folder = PrivateFolder("sources")
        self._file = f"digests-{sys.version_info.major}.{sys.version_info.minor}"  # a syntax tree is some Python's
        self._found: dict[str, str] = self._read()
        self._fresh: dict[str, str] = {}

    def _read(self) -> dict[str, str]:
        try:
            data = self._folder.read(self._file) or b""
        except CacheError:
            return {}
        lines = re.findall(rb"^([0-9a-f]{64}) ([0-9a-f]{64})$", data, re.MULTILINE)
        return {text.decode(): meaning.decode() for text, meaning in lines}

    def digest(self, source: bytes) -> str:
        key = hashlib.sha256(source).hexdigest()
        found = self._found.get(key)
        if found is None:
            found = self._found[key] = self._fresh[key] = hashlib.sha256(code(source).encode()).hexdigest()
        return found

    def keep(self) -> None:
        """Write what is new; where that cannot be, the next process parses again."""
        if not self._fresh:
            return
        entries = [*{**self._read(), **self._fresh}.items()][-self.ENTRIES :]  # others may have written meanwhile
        self._fresh = {}
        with contextlib.suppress(CacheError):
            self._folder.write(self._file, "".join(f"{key} {found}\n" for key, found in entries).encode())


@functools.cache
def _known() -> _Known:
    return _Known()


@functools.cache
def _meaning(path: Path) -> str:
    return _known().digest(text(path))


@functools.cache
def digest(module: str, names: tuple[str, ...]) -> str:
    """Of the code in `files`."""
    made = hashlib.sha256()
    for path in files(module, names):
        made.update(f"{path.name}\0{_meaning(path)}\0".encode())
    _known().keep()
    return made.hexdigest()
