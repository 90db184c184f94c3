"""Words of four signed bytes: what the unpacking of several types is made of."""

from __future__ import annotations

from typing import Any

LOW, ONE_BIT, TWO_BITS = 0x0F0F0F0F, 0x01010101, 0x03030303


def fifths():
    """-> f(bits, shift), see there."""
    from pyggml.kernels.cuda import device as d

    @d.inline
    def fifth(bits, shift):
        """Bits shift ... shift + 3 as bit 4 of each of four bytes."""
        return d.i32(((((bits >> shift) & 15) * 0x00204081) & 0x01010101) << 4)

    return fifth


def levels(values: Any):
    """-> f(v): four numbers of levels (16 signed bytes), one a byte -> those levels."""
    import numpy as np

    from pyggml.kernels.cuda import device as d

    t0, t1, t2, t3 = (int(x) for x in np.ascontiguousarray(values).view(np.int32))

    @d.inline
    def look_up(v):
        pairs = v | (v >> 4)
        select = ((pairs & 255) | ((pairs >> 8) & 0xFF00)) & 0x7777
        low, high = d.permute(t0, t1, select), d.permute(t2, t3, select)
        mask = ((v >> 3) & 0x01010101) * 255
        return d.i32(low ^ ((low ^ high) & mask))

    return look_up


def eight_words(d):
    """-> f(at): 32 bytes from an even address as eight words."""

    @d.inline
    def eight(b):
        odd = b & 2
        at = b - odd
        select = 0x5432 if odd else 0x3210
        w0, w1, w2, w3, w4 = d.ld_i32(at), d.ld_i32(at + 4), d.ld_i32(at + 8), d.ld_i32(at + 12), d.ld_i32(at + 16)
        w5, w6, w7, w8 = d.ld_i32(at + 20), d.ld_i32(at + 24), d.ld_i32(at + 28), d.ld_i32(at + 28 + 2 * odd)
        return (
            d.permute(w0, w1, select), d.permute(w1, w2, select), d.permute(w2, w3, select), d.permute(w3, w4, select),
            d.permute(w4, w5, select), d.permute(w5, w6, select), d.permute(w6, w7, select), d.permute(w7, w8, select),
        )  # fmt: skip

    return eight
