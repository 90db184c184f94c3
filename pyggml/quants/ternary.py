"""What TQ1_0 and TQ2_0 share: values -d, 0 and d."""

import numpy as np
from numpy.typing import NDArray

from pyggml.quants.base import Bytes, Floats
from pyggml.quants.rounding import largest_magnitude, reciprocal


def trits(values: Floats) -> tuple[Floats, Bytes]:
    """(n, 256) -> d (n,), trits 0 to 2 (n, 256): the lowest bytes of C's `int xi = lroundf(x * id) + 1`.

    Where a NaN has wiped out the largest magnitude they may be any byte.
    """
    d = largest_magnitude(values)
    x = (values * reciprocal(d)).astype(np.float64)
    fits = np.abs(x) < 2.0**63
    away = np.trunc(x + np.copysign(0.5, x))
    whole: NDArray[np.int64] = np.where(fits, away, -(2.0**63)).astype(np.int64)
    return d[:, 0], (whole + np.int64(1)).astype(np.uint8)
