"""Opening a GGUF model, of one file or of several parts: maps the files and hands out their tensors' bytes in place.

Owns the mapping, the joining of parts (`-00001-of-0000N.gguf`) and the typed getters.
"""

import hashlib
import mmap
import os
import re
import weakref
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from pyggml.dtypes import GGMLType
from pyggml.errors import GGUFError
from pyggml.gguf.header import Header, ValueType, parse
from pyggml.gguf.strings import StringArray
from pyggml.regular_file import open_regular

_PART = re.compile(r"(?P<prefix>.*)-(?P<number>\d{5,})-of-(?P<count>\d{5,})\.gguf", re.DOTALL)
_INTEGERS = {
    ValueType.U8,
    ValueType.I8,
    ValueType.U16,
    ValueType.I16,
    ValueType.U32,
    ValueType.I32,
    ValueType.U64,
    ValueType.I64,
}
_FLOATS = {ValueType.F32, ValueType.F64}


OPEN_FILES: "weakref.WeakSet[GGUFFile]" = weakref.WeakSet()
"""Those that this process may read: after a bus error it can be told whose fault it was."""


@dataclass(frozen=True, slots=True, eq=False)
class TensorInfo:
    """A tensor of the file. `ne` as in ggml: ne[0] counts the elements of a row."""

    name: str
    type: GGMLType
    ne: tuple[int, int, int, int]
    nbytes: int
    data: npt.NDArray[np.uint8]  # (nbytes,), read-only, the mapped file itself
    path: Path  # the part that holds it
    offset: int  # of `data` in that part


class GGUFFile:
    """A model file, open. Use `GGUFFile.open`; close it, or use it in a `with` statement.

    metadata     key -> bool, int, float, str, StringArray, read-only NumPy array, or list of arrays; the first part's
    value_types  key -> its type in the file
    tensors      name -> TensorInfo, in the file's order, of all parts
    paths        the parts
    n_bytes      bytes of all tensors together
    """

    def __init__(self, paths: list[Path], headers: list[Header], maps: list[mmap.mmap]) -> None:
        self.paths = paths
        self.version = headers[0].version
        self.alignment = headers[0].alignment
        self.metadata: dict[str, Any] = headers[0].metadata
        self.value_types: dict[str, ValueType] = headers[0].value_types
        self._maps = maps
        OPEN_FILES.add(self)
        self.tensors: dict[str, TensorInfo] = {}
        for path, header, mapped in zip(paths, headers, maps, strict=True):
            whole = np.frombuffer(mapped, np.uint8)
            for t in header.tensors:
                if t.name in self.tensors:
                    other = self.tensors[t.name].path.name
                    raise GGUFError(f"{path}: tensor {t.name!r} is also in {other}")
                data = whole[t.offset : t.offset + t.nbytes]
                self.tensors[t.name] = TensorInfo(t.name, t.type, t.ne, t.nbytes, data, path, t.offset)
        self.n_bytes = sum(t.nbytes for t in self.tensors.values())

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Opens and checks a file, or all parts of a model when given the first. Raises GGUFError."""
        paths = [Path(path)]
        header, mapped = _map(paths[0])
        headers, maps = [header], [mapped]
        count = _split_value(paths[0], header, "split.count", 1)
        if count > 1:
            paths = _parts(paths[0], _split_value(paths[0], header, "split.no", None), count)
            for number, part in enumerate(paths[1:], 1):
                if not part.exists():
                    raise GGUFError(f"{part}: part {number + 1} of {count} is missing")
                header, mapped = _map(part)
                no, n = (_split_value(part, header, f"split.{k}", None) for k in ("no", "count"))
                if (no, n) != (number, count):
                    raise GGUFError(f"{part}: says that it is part {no + 1} of {n}, not {number + 1} of {count}")
                headers.append(header)
                maps.append(mapped)
            found = sum(len(h.tensors) for h in headers)
            expected = _split_value(paths[0], headers[0], "split.tensors.count", found)
            if found != expected:
                raise GGUFError(f"{paths[0]}: {expected} tensors are announced, the {count} parts hold {found}")
        return cls(paths, headers, maps)

    def check_whole(self) -> None:
        """Raises GGUFError when a file has become shorter since it was opened: what is read behind its end is a bus error."""
        for path, mapped in zip(self.paths, self._maps, strict=False):  # none when it is closed
            if (size := mapped.size()) < len(mapped):
                raise GGUFError(f"{path}: was cut from {len(mapped)} to {size} bytes while it was in use")

    def fingerprint(self) -> bytes:
        """32 bytes that tell files apart: of all metadata and names, and of a few bytes of each tensor, for speed."""
        digest = hashlib.sha256()
        for path, mapped in zip(self.paths, self._maps, strict=True):
            inside = [t for t in self.tensors.values() if t.path == path]
            end = min((t.offset for t in inside), default=len(mapped))
            digest.update(memoryview(mapped)[:end])
            for t in inside:
                for at in (0, t.nbytes // 2, max(t.nbytes - 64, 0)):
                    digest.update(t.data[at : at + 64].tobytes())
        return digest.digest()

    def close(self) -> None:
        """Forgets tensors and metadata. A file stays mapped as long as an array over its bytes is alive."""
        self.tensors = {}
        self.metadata = {}
        self.value_types = {}
        OPEN_FILES.discard(self)
        maps, self._maps = self._maps, []
        for mapped in maps:
            try:
                mapped.close()
            except BufferError:  # arrays over it are alive: the last one's end unmaps it
                continue

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # Typed getters. Without a default a missing key is an error; a value of another type always is.

    def get_u32(self, key: str, default: int | None = None) -> int:
        """An integer of any width within 0 to 2^32-1."""
        value = self._get(key, default, _INTEGERS, "an integer")
        if not 0 <= value < 1 << 32:
            raise GGUFError(f"{self.paths[0]}: {key} is {value}, not within 0 to {(1 << 32) - 1}")
        return int(value)

    def get_f32(self, key: str, default: float | None = None) -> float:
        """A float of either size. Raises GGUFError for another type, and for a missing key without a default."""
        return float(self._get(key, default, _FLOATS, "a float"))

    def get_bool(self, key: str, default: bool | None = None) -> bool:
        """True or False. Raises GGUFError for another type, and for a missing key without a default."""
        return bool(self._get(key, default, {ValueType.BOOL}, "a bool"))

    def get_str(self, key: str, default: str | None = None) -> str:
        """A string. Raises GGUFError for another type, and for a missing key without a default."""
        return str(self._get(key, default, {ValueType.STRING}, "a string"))

    def get_array(self, key: str, default: Any = None) -> npt.NDArray[Any]:
        """A one-dimensional array of numbers."""
        value = self._get(key, default, {ValueType.ARRAY}, "an array of numbers")
        if isinstance(value, StringArray | list):
            raise GGUFError(f"{self.paths[0]}: {key} must be an array of numbers, it holds strings or arrays")
        return np.asarray(value)

    def get_strings(self, key: str, default: StringArray | None = None) -> StringArray:
        """An array of strings. Raises GGUFError for another type, and for a missing key without a default."""
        value = self._get(key, default, {ValueType.ARRAY}, "an array of strings")
        if not isinstance(value, StringArray):
            raise GGUFError(f"{self.paths[0]}: {key} must be an array of strings, it holds something else")
        return value

    def text(self, key: str) -> str | None:
        """The string that a key has; None where the key is missing or its value is no string."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else None

    def _get(self, key: str, default: Any, types: set[ValueType], wanted: str) -> Any:
        if key not in self.metadata:
            if default is None:
                raise GGUFError(f"{self.paths[0]}: key {key!r} is missing")
            return default
        if self.value_types[key] not in types:
            raise GGUFError(f"{self.paths[0]}: {key} must be {wanted}, it is {self.value_types[key].name}")
        return self.metadata[key]


def _map(path: Path) -> tuple[Header, mmap.mmap]:
    try:
        with open_regular(path) as f:
            if os.fstat(f.fileno()).st_size == 0:
                raise GGUFError(f"{path}: the file is empty")
            mapped = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as e:  # ValueError: a path with a NUL, a file that cannot be mapped
        raise GGUFError(f"{path}: {getattr(e, 'strerror', None) or e}") from None
    try:
        return parse(memoryview(mapped)), mapped
    except GGUFError as e:
        raise GGUFError(f"{path}: {e}") from None


def _split_value(path: Path, header: Header, key: str, default: int | None) -> int:
    kind = header.value_types.get(key)
    if kind is None:
        if default is None:
            raise GGUFError(f"{path}: one part of several, but key {key!r} is missing")
        return default
    if kind not in _INTEGERS:
        raise GGUFError(f"{path}: {key} must be an integer, it is {kind.name}")
    return int(header.metadata[key])


def _parts(path: Path, number: int, count: int) -> list[Path]:
    """The parts' paths, from the first one's name (llama_split_path in llama.cpp)."""
    match = _PART.fullmatch(path.name)
    if number != 0:
        first = f"{match['prefix']}-00001-of-{count:05}.gguf" if match else "the first part"
        raise GGUFError(f"{path}: part {number + 1} of {count}; open {first}")
    if not match or (int(match["number"]), int(match["count"])) != (1, count):
        raise GGUFError(f"{path}: the first of {count} parts must be named NAME-00001-of-{count:05}.gguf")
    return [path.with_name(f"{match['prefix']}-{i:05}-of-{count:05}.gguf") for i in range(1, count + 1)]
