"""Whole blocks as F32: one kernel a type, called by those of dequant_fallback.py.

A kernel gets the address of the first block, that of the result, and the number of blocks.
"""

from pyggml.dtypes import SIZES, GGMLType
from pyggml.kernels.cpu.formats import functions


def decode(name):
    """-> kernel(x, to, blocks)."""
    from pyggml import simd as v

    U = v.U
    dtype = GGMLType[name]
    block = functions(dtype).dequantise()
    size, values = U(SIZES[dtype].type_size), U(4 * SIZES[dtype].block_size)

    def kernel(x, to, blocks):
        at = U(to)
        for _ in range(blocks):
            block(x, at)
            x += size
            at += values

    return kernel
