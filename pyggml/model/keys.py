"""Typed look-ups in GGUF metadata; every error names the key. Knows keys and numbers; no tensor and no device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pyggml.errors import ModelError

MAX_NUMBER = (1 << 31) - 1  # an op's parameters are i32
F32_MAX = float(np.finfo(np.float32).max)  # and f32


class Keys:
    """Look-ups under `<architecture>.`."""

    def __init__(self, metadata: Mapping[str, Any], architecture: str) -> None:
        self.metadata = metadata
        self.architecture = architecture

    def find(self, key: str) -> tuple[str, Any]:
        """The key's whole name, and its value or None."""
        full = f"{self.architecture}.{key}"
        return full, self.metadata.get(full)

    def u32(self, key: str, default: int | None = None, least: int = 1) -> int:
        """An integer, or an array of equal integers (one a layer)."""
        full, value = self.find(key)
        if isinstance(value, np.ndarray | list):
            items = {item if isinstance(item, int) else repr(item) for item in self.items(value)}
            if len(items) != 1:
                raise ModelError(f"key {full}: {len(items)} different values, one is expected")
            value = items.pop()
        return self._integer(full, value, default, least)

    def each_u32(self, key: str, n: int, default: int | Sequence[int] | None = None, least: int = 1) -> tuple[int, ...]:
        """An integer a layer, `n` of them; one that stands alone counts for all."""
        full, value = self.find(key)
        if isinstance(value, np.ndarray | list):
            items = self.items(value)
            if len(items) != n:
                raise ModelError(f"key {full} has {len(items)} values, there are {n} layers")
            return tuple(self._integer(full, item, None, least) for item in items)
        if isinstance(default, Sequence):
            if value is None:
                return tuple(default)
            default = None
        return (self._integer(full, value, default, least),) * n

    def each_flag(self, key: str, n: int) -> tuple[bool, ...]:
        """True or false a layer, `n` of them; integers are true if they are not 0."""
        full, value = self.find(key)
        if not isinstance(value, np.ndarray | list) or not all(isinstance(item, int) for item in self.items(value)):
            raise ModelError(f"key {full} is {value!r:.60}, must be an array of {n} flags")
        if len(items := self.items(value)) != n:
            raise ModelError(f"key {full} has {len(items)} values, there are {n} layers")
        return tuple(item != 0 for item in items)

    def flags(self, key: str, n: int) -> tuple[bool, ...]:
        """As each_flag; one that stands alone counts for all."""
        value = self.find(key)[1]
        return (bool(value),) * n if isinstance(value, int) else self.each_flag(key, n)

    @staticmethod
    def _integer(full: str, value: Any, default: int | None, least: int) -> int:
        if value is None:
            if default is None:
                raise ModelError(f"key {full} is missing")
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MAX_NUMBER:
            raise ModelError(f"key {full} is {value!r:.60}, must be an integer from {least} to {MAX_NUMBER}")
        return value

    def f32(self, key: str, default: float | None = None, positive: bool = True) -> float:
        """A finite number of 32 bits, above 0 unless `positive` is False; no default: the key must be there. Raises
        ModelError."""
        full, value = self.find(key)
        if value is None:
            if default is None:
                raise ModelError(f"key {full} is missing")
            return default
        if isinstance(value, bool) or not isinstance(value, float | int) or not -F32_MAX <= value <= F32_MAX:
            raise ModelError(f"key {full} is {value!r:.60}, must be a finite number of 32 bits")
        if positive and value <= 0:
            raise ModelError(f"key {full} is {value!r}, must be positive")
        return float(value)

    def each_f32(self, key: str, n: int, default: float) -> tuple[float, ...]:
        """A number a layer, `n` of them; one that stands alone counts for all."""
        full, value = self.find(key)
        items = self.items(value) if isinstance(value, np.ndarray | list) else [default if value is None else value] * n
        if len(items) != n:
            raise ModelError(f"key {full} has {len(items)} values, there are {n} layers")
        if bad := [item for item in items if isinstance(item, bool) or not isinstance(item, float | int)]:
            raise ModelError(f"key {full} has {bad[0]!r:.60}, must be numbers")
        return tuple(float(item) for item in items)

    def boolean(self, key: str, default: bool) -> bool:
        """True or False. Raises ModelError for a value of another kind."""
        full, value = self.find(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise ModelError(f"key {full} is {value!r:.60}, must be true or false")
        return value

    def choice(self, key: str, choices: tuple[str, ...], default: str) -> str:
        """One of these texts. Raises ModelError, which lists them."""
        full, value = self.find(key)
        if value is None:
            return default
        if not isinstance(value, str) or value not in choices:
            raise ModelError(f"key {full} is {value!r:.60}, known are {', '.join(choices)}")
        return str(value)

    @staticmethod
    def items(value: Any) -> list[Any]:
        """An array's elements; of what is no array itself."""
        if isinstance(value, np.ndarray):
            found: list[Any] = value.tolist()
            return found
        return value if isinstance(value, list) else [value]
