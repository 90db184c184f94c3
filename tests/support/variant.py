"""A tiny model of the reference with other numbers: what is changed. Knows no architecture."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Shapes = Mapping[str, tuple[float, tuple[int, ...]] | tuple[float, tuple[int, ...], float]]
"""Tensors by name: standard deviation, shape, outermost first, and mean. Without a mean vectors are around 1, as norms are,
others around 0."""


@dataclass(frozen=True)
class Variant:
    """base       the file that is changed
    keys       metadata without the architecture's name, in place of the file's
    tensors    new ones, or in place of the file's, of every layer ("blk.*.") or of one
    without    tensors of every layer, or of one ("blk.0. ..."), that are left out
    factors    by pattern of tensors' names, what they are multiplied by
    """

    base: str
    keys: Mapping[str, Any] = field(default_factory=dict)
    tensors: Shapes = field(default_factory=dict)
    without: tuple[str, ...] = ()
    factors: Mapping[str, float] = field(default_factory=dict)
