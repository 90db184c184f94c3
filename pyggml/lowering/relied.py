"""What lowering remembers while some layers stand for others (repeats.py): which layer made it, and what repeated layers found.

Owns the proof that what a repeated layer finds is there for all that it stands for. What such a layer may make itself is the
business of those who lower: layers.py and cuda_layers.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyggml.graph import IrregularError, Pattern


class Relied:
    def __init__(self, pattern: Pattern) -> None:
        self._pattern = pattern
        self._maker: dict[Any, int] = {}  # key of what is remembered -> layer
        self._found: dict[Any, Any] = {}  # by a repeated layer, made before the first of them

    def made(self, key: Any, layer: int) -> None:
        """By this layer."""
        self._maker[key] = layer

    def found(self, key: Any, value: Any, layer: int) -> None:
        """By this layer."""
        if self._pattern.repeated(layer) and self._maker[key] < self._pattern.first:
            self._found[key] = value

    def check(self, remembered: Callable[[Any], Any]) -> None:
        """After the last layer. Raises IrregularError unless all that was found is still remembered."""
        for key, value in self._found.items():
            if remembered(key) is not value:
                raise IrregularError(f"what layers share is forgotten: {key}")
