"""What types that are written value by value have in common: nobody waits for them.

Imported by factories only (Numba).
"""

import numpy as np

from pyggml import simd as v
from pyggml.jit import device

U = v.U
ZERO, HALF, ONE = (np.float32(x) for x in (0, 0.5, 1))
SPARE = 4 * 256
"""Where in an encoder's work memory bytes are free, behind the values."""


def at(layout, field):
    """Where a field of a block lies."""
    return U(layout.fields[field][1])


@device
def put_byte(to, q):
    """The lowest byte of a number."""
    v.put_u8(to, np.uint8(q & 255))


@device
def greatest(x, n):
    """The largest magnitude of n values; NaNs never win."""
    most = ZERO
    for i in range(n):
        y = abs(v.f32_at(x + U(4 * i)))
        if y > most:
            most = y
    return most
