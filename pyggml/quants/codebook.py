"""What the IQ1, IQ2 and IQ3 types share: runs of values looked up in a table, with signs.

The tables are those of ggml-common.h; the `gguf` package has them, and is asked when one is first needed.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from pyggml.quants.base import Bytes, Floats


@cache
def grid(name: str) -> NDArray[np.int8]:
    """(entries, 8 or 4): the table of a type by its name, such as "IQ2_XXS"."""
    import gguf.quants

    source = getattr(gguf.quants, name)
    source.init_grid()
    return np.ascontiguousarray(source.grid.reshape(source.grid_shape).astype(np.int8))


SIGNS = np.array([i | (i.bit_count() % 2) << 7 for i in range(128)], np.uint8)
"""Seven signs as a byte: the eighth makes the number of minuses even (ksigns_iq2xs)."""


def signed(values: Floats, signs: Bytes) -> Floats:
    """Runs of eight values, negated (NaNs too) where a bit of the run's byte of `signs` is set; the first is its lowest
    bit."""
    minus = np.unpackbits(signs[..., None], axis=-1, bitorder="little")
    return np.where(minus == 1, -values, values)


def nibbles(packed: Bytes) -> Bytes:
    """(n, k) -> (n, 2 k): of each byte the low half, then the high half."""
    return np.stack([packed & np.uint8(15), packed >> np.uint8(4)], axis=2).reshape(len(packed), 2 * packed.shape[1])
