"""Arrays of GGUF strings: where each one lies is found in a few NumPy passes, its text is decoded when asked for.

Owns the layout of one string (u64 length, then UTF-8 bytes).
"""

from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
import numpy.typing as npt

from pyggml.errors import GGUFError

LENGTH_SIZE = 8  # a string begins with its length: u64, little-endian

_CHUNK = 1 << 15  # strings located by one pass
_GUESS = 24  # bytes looked at for each of them: vocabularies need 12 to 20

Positions = npt.NDArray[np.int64]


class StringArray(Sequence[str]):
    """A read-only sequence of strings over the bytes of the file's array.

    Indexing and iteration decode UTF-8; `tolist()` decodes all of them, the fastest way to have them all. Equal to any
    sequence of the same strings. Raises GGUFError, with the key and the index, for a string that is not UTF-8.
    """

    __slots__ = ("_base", "_data", "_ends", "_key", "_starts")

    def __init__(self, key: str, data: bytes, base: int, starts: Positions, ends: Positions) -> None:
        self._key = key
        self._data = data
        self._base = base  # data[0] is this byte of the file
        self._starts = starts
        self._ends = ends

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        raw = self.raw(index)
        try:
            return raw.decode()
        except UnicodeDecodeError as e:
            at = self._base + int(self._starts[index]) + e.start
            raise GGUFError(f"{self._key}[{index}] is not UTF-8: byte 0x{raw[e.start]:02x} at offset {at}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.tolist())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str | bytes):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # equal to lists, which have none either

    def __repr__(self) -> str:
        return f"StringArray({self._key!r}, {len(self)} strings)"

    @property
    def encoded(self) -> bytes:
        """All of them as they stand in the file, each after its length."""
        return self._data

    def raw(self, index: int) -> bytes:
        """The bytes of one string as they stand in the file."""
        return self._data[int(self._starts[index]) : int(self._ends[index])]

    def tolist(self) -> list[str]:
        """All strings. Raises GGUFError, which names the one that is no UTF-8."""
        data = self._data
        try:
            return [data[a:b].decode() for a, b in zip(self._starts.tolist(), self._ends.tolist(), strict=True)]
        except UnicodeDecodeError:
            return [self[i] for i in range(len(self))]  # finds the culprit and names it


def locate(data: memoryview, start: int, n: int) -> tuple[Positions, Positions, int]:
    """Where `n` strings that follow each other from byte `start` of `data` begin and end: (starts, ends, next byte).

    Stops early, with fewer than `n` positions, at a string whose length reaches past the end of `data`; memory and time
    stay in proportion to the bytes that really are strings. Nearly all strings of a vocabulary are shorter than 256
    bytes and hold no NUL, so that the zero bytes of their length fields are the only zeros there: `_fast` finds these
    with NumPy and proves each length against the next. What it cannot prove is walked one by one.
    """
    starts: list[Positions] = []
    ends: list[Positions] = []
    found, pos = 0, start
    steps = 32  # strings walked where a pass stops; doubled each time, so that passes in vain stay few
    while found < n:
        a, b = _fast(data, pos, min(n - found, _CHUNK))
        if len(a) < min(n - found, _CHUNK) // 2 or len(a) == 0:
            from_ = int(b[-1]) if len(b) else pos
            want = min(n - found - len(a), steps)
            c, d = _walk(data, from_, want)
            a, b = np.concatenate([a, c]), np.concatenate([b, d])
            n = n if len(c) == want else found + len(a)
            steps = min(steps * 2, _CHUNK)
        starts.append(a)
        ends.append(b)
        found += len(a)
        pos = int(b[-1]) if len(b) else pos
    none = np.empty(0, np.int64)
    return np.concatenate([*starts, none]), np.concatenate([*ends, none]), pos


def _fast(data: memoryview, pos: int, count: int) -> tuple[Positions, Positions]:
    """As many of `count` strings from `pos` on as one pass over the zero bytes proves."""
    window = np.frombuffer(data[pos : pos + count * _GUESS], np.uint8)
    zeros = np.flatnonzero(window == 0)
    whole = len(zeros) // (LENGTH_SIZE - 1)
    sevens = zeros[: min(whole, count) * (LENGTH_SIZE - 1)].reshape(-1, LENGTH_SIZE - 1)
    heads = sevens[:, 0] - 1  # the one byte of the length that may differ from zero
    bodies = heads + LENGTH_SIZE
    if len(heads) == 0 or heads[0] != 0:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    ends = bodies + window[heads]
    good = sevens[:, -1] - sevens[:, 0] == LENGTH_SIZE - 2  # the seven zeros adjoin ...
    good[1:] &= ends[:-1] == heads[1:]  # ... and the string before ends where this one begins
    good &= pos + ends <= len(data)
    proven = len(good) if good.all() else int(np.argmin(good))
    return pos + bodies[:proven], pos + ends[:proven]


def _walk(data: memoryview, pos: int, count: int) -> tuple[Positions, Positions]:
    """Up to `count` strings from `pos` on, of any length, one after the other."""
    starts, ends = [], []
    size = len(data)
    for _ in range(count):
        body = pos + LENGTH_SIZE
        if body > size:
            break
        end = body + int.from_bytes(data[pos:body], "little")
        if end > size:
            break
        starts.append(body)
        ends.append(end)
        pos = end
    return np.array(starts, np.int64), np.array(ends, np.int64)
