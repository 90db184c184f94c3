"""`Llama.set_cache`: states of texts computed before, by their tokens, as llama-cpp-python keeps them in memory or on disk.

Owns which states are kept, which one is found, and the files of those on disk.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from pyggml.api.state import LlamaState
from pyggml.atomic_file import atomic_file
from pyggml.errors import StateError
from pyggml.prefix import common_prefix

Key = tuple[int, ...]
UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)
"""What reading a file that is no state, or gone, raises."""


class BaseLlamaCache(ABC):
    """A mapping from tokens to states of at most `capacity_bytes` together; the one used longest ago goes first.

    `cache[tokens]` is the state that has the most tokens at the beginning in common; KeyError where none has any.
    """

    def __init__(self, capacity_bytes: int = 2 << 30) -> None:
        self.capacity_bytes = capacity_bytes

    @property
    @abstractmethod
    def cache_size(self) -> int:
        """Bytes of all states."""

    @abstractmethod
    def __getitem__(self, tokens: Sequence[int]) -> LlamaState: ...

    @abstractmethod
    def __contains__(self, tokens: Sequence[int]) -> bool: ...

    @abstractmethod
    def __setitem__(self, tokens: Sequence[int], state: LlamaState) -> None: ...


class LlamaRAMCache(BaseLlamaCache):
    """States in memory."""

    def __init__(self, capacity_bytes: int = 2 << 30) -> None:
        super().__init__(capacity_bytes)
        self.cache_state: OrderedDict[Key, LlamaState] = OrderedDict()

    @property
    def cache_size(self) -> int:
        """Bytes of all states."""
        return sum(state.llama_state_size for state in self.cache_state.values())

    def __getitem__(self, tokens: Sequence[int]) -> LlamaState:
        key = _nearest(self.cache_state, tokens)
        if key is None:
            raise KeyError("no state begins with these tokens")
        self.cache_state.move_to_end(key)
        return self.cache_state[key]

    def __contains__(self, tokens: Sequence[int]) -> bool:
        return _nearest(self.cache_state, tokens) is not None

    def __setitem__(self, tokens: Sequence[int], state: LlamaState) -> None:
        key = tuple(int(token) for token in tokens)
        self.cache_state.pop(key, None)
        self.cache_state[key] = state
        while self.cache_state and self.cache_size > self.capacity_bytes:
            self.cache_state.popitem(last=False)


LlamaCache = LlamaRAMCache


class LlamaDiskCache(BaseLlamaCache):
    """States in a folder, one file each (.npz), which several processes and later ones may use.

    A file that is no state, or is taken away while it is looked for, is as if it were not there.
    """

    def __init__(self, cache_dir: str | os.PathLike[str] = ".cache/llama_cache", capacity_bytes: int = 2 << 30) -> None:
        super().__init__(capacity_bytes)
        self.folder = Path(cache_dir)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._keys: dict[Path, Key] = {}  # of files read before: what one is named after never changes

    @property
    def cache_size(self) -> int:
        """Bytes of all files."""
        return sum(size for _, size, _ in self._files())

    def __getitem__(self, tokens: Sequence[int]) -> LlamaState:
        keys = self._read_keys()
        key = _nearest(keys, tokens)
        if key is None:
            raise KeyError("no state begins with these tokens")
        try:
            state = _read(keys[key])
            os.utime(keys[key])
        except UNREADABLE:
            raise KeyError("the state that begins with these tokens cannot be read") from None
        return state

    def __contains__(self, tokens: Sequence[int]) -> bool:
        return _nearest(self._read_keys(), tokens) is not None

    def __setitem__(self, tokens: Sequence[int], state: LlamaState) -> None:
        """Raises StateError where the file cannot be written."""
        key = np.array([int(token) for token in tokens], np.int32)
        path = self.folder / f"{hashlib.blake2b(key.tobytes(), digest_size=16).hexdigest()}.npz"
        try:
            with atomic_file(path, "saved state", _is_archive) as (file, finish):
                np.savez(
                    file,
                    key=key,
                    input_ids=state.input_ids,
                    scores=state.scores,
                    llama_state=np.frombuffer(state.llama_state, np.uint8),
                    numbers=np.array([state.n_tokens, state.seed], np.int64),
                )
                finish()
        except OSError as e:
            raise StateError(f"{path}: {e.strerror}") from None
        files = sorted(self._files())
        total = sum(size for _, size, _ in files)
        for _, size, oldest in files:
            if total <= self.capacity_bytes:
                break
            oldest.unlink(missing_ok=True)
            total -= size

    def _files(self) -> Iterable[tuple[int, int, Path]]:
        """When each was used, its bytes and path."""
        for path in self.folder.glob("*.npz"):
            try:
                info = path.stat()
            except OSError:
                continue
            yield info.st_mtime_ns, info.st_size, path

    def _read_keys(self) -> dict[Key, Path]:
        known: dict[Path, Key] = {}
        for _, _, path in self._files():
            if path not in self._keys:
                try:
                    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                        self._keys[path] = tuple(archive["key"].tolist())
                except UNREADABLE:
                    continue
            known[path] = self._keys[path]
        self._keys = known
        return {key: path for path, key in known.items()}


def _nearest(keys: Iterable[Key], tokens: Sequence[int]) -> Key | None:
    found = max(keys, key=lambda key: common_prefix(key, tokens), default=None)
    return found if found is not None and common_prefix(found, tokens) else None


def _read(path: Path) -> LlamaState:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        data = archive["llama_state"].tobytes()
        n_tokens, seed = archive["numbers"].tolist()
        return LlamaState(archive["input_ids"], archive["scores"], n_tokens, data, len(data), seed)


def _is_archive(head: bytes) -> bool:
    return head.startswith(b"PK")
