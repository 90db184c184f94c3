"""Words of four signed bytes: what the unpacking of several types is made of."""

from __future__ import annotations

from typing import Any

LOW, ONE_BIT, TWO_BITS = 0x0F0F0F0F, 0x01010101, 0x03030303


def less():
    """-> f(word, by): of each of four bytes below 128 the difference to the byte that stands four times in `by`, signed."""
    from pyggml.kernels.cuda import device as d

    @d.inline
    def difference(word, by):
        return d.i32(((word | 0x80808080) - by) ^ 0x80808080)  # no byte borrows from the next one

    return difference


def fifths():
    """-> f(bits, shift), see there."""
    from pyggml.kernels.cuda import device as d

    @d.inline
    def fifth(bits, shift):
        """Bits shift ... shift + 3 as bit 4 of each of four bytes."""
        return d.i32((((d.shr(bits, shift) & 15) * 0x00204081) & ONE_BIT) << 4)

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
        select = 0x3210 + odd * 0x1111
        w0, w1, w2, w3, w4 = d.ld_i32(at), d.ld_i32(at + 4), d.ld_i32(at + 8), d.ld_i32(at + 12), d.ld_i32(at + 16)
        w5, w6, w7, w8 = d.ld_i32(at + 20), d.ld_i32(at + 24), d.ld_i32(at + 28), d.ld_i32(at + 28 + 2 * odd)
        return (
            d.permute(w0, w1, select), d.permute(w1, w2, select), d.permute(w2, w3, select), d.permute(w3, w4, select),
            d.permute(w4, w5, select), d.permute(w5, w6, select), d.permute(w6, w7, select), d.permute(w7, w8, select),
        )  # fmt: skip

    return eight


def level_pairs(values: Any):
    """-> f(word): the levels (16 signed bytes) that eight numbers of four bits stand for: those of the low halves of its bytes,
    those of the high halves."""
    import numpy as np

    from pyggml.kernels.cuda import device as d

    t0, t1, t2, t3 = (int(x) for x in np.ascontiguousarray(values).view(np.int32))

    @d.inline
    def four(x, halves):
        """Of four numbers in the low 16 bits: three bits choose in either half of the table, the fourth the half."""
        return d.permute(d.permute(t0, t1, x), d.permute(t2, t3, x), halves)

    @d.inline
    def pair(word):
        x, halves = d.i32(word & 0x77777777), d.i32(d.shr(word, 1) & 0x44444444 | 0x32103210)
        first, second = four(x, halves), four(d.shr(x, 16), d.shr(halves, 16))
        return d.permute(first, second, 0x6420), d.permute(first, second, 0x7531)

    return pair
