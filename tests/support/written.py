"""What is said of a tiny model that is written here: keys and shapes. Knows no architecture."""

from collections.abc import Iterator
from typing import Any

import numpy as np

Shapes = dict[str, tuple[int, ...]]
"""By tensors' names, outermost first."""


class Written:
    """keys    metadata, without the architecture's name
    shapes  of all tensors
    values  of tensors that are not random
    """

    def __init__(self, arch: str, keys: dict[str, Any], shapes: Shapes, values: dict[str, np.ndarray]) -> None:
        self.arch, self.keys, self.shapes, self.values = arch, keys, shapes, values


def gated(
    il: int, n_embd: int, n_ff: int, suffix: str = "", experts: tuple[int, ...] = ()
) -> Iterator[tuple[str, Any]]:
    """The matrices of a gated network, or of several."""
    yield f"blk.{il}.ffn_gate{suffix}.weight", (*experts, n_ff, n_embd)
    yield f"blk.{il}.ffn_up{suffix}.weight", (*experts, n_ff, n_embd)
    yield f"blk.{il}.ffn_down{suffix}.weight", (*experts, n_embd, n_ff)
