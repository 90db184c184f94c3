"""Kernels that do nothing but read memory, or multiply integers."""

import numpy as np

READ_BYTES = 1024
DOT_PRODUCTS = 256
"""Multiply-adds of a column in a round."""
DOT_COLUMNS = {"vnni": 12, "v4": 12, "v3": 4, "v2": 2, "generic": 1}


def read():
    """-> kernel(address, count, out): sums `count` bytes, a multiple of READ_BYTES, as words in four registers."""
    from pyggml import simd as v

    U = v.U
    load = v.loader("i32", 16)

    def kernel(address, count, out):
        a, b, c, d = v.zero_i32(), v.zero_i32(), v.zero_i32(), v.zero_i32()
        for at in range(0, count, 1024):
            for part in range(0, 1024, 256):
                p = address + U(at + part)
                v.prefetch(p + U(8192))
                v.prefetch(p + U(8192 + 64))
                v.prefetch(p + U(8192 + 128))
                v.prefetch(p + U(8192 + 192))
                a += load(p)
                b += load(p + U(64))
                c += load(p + U(128))
                d += load(p + U(192))
        v.store(out, a + b + c + d)

    return kernel


def dot(columns):
    """-> kernel(address, rounds, out): each round 4 x 64 byte products for each of `columns` accumulators in registers,
    operands from the first cache (4 KiB at `address`)."""
    from pyggml import simd as v

    U = v.U
    ops = v.TileOps(columns)
    start_zero, dot4, zero, scale_add, store = (
        ops.start_zero,
        ops.dot4_u5i8,
        ops.zero,
        ops.scale_add,
        ops.store_columns,
    )

    def kernel(address, rounds, out):
        n = start_zero()
        for i in range(rounds):
            at = address + U((i & 15) * 128)
            n = dot4(n, at, at + U(64))
        store(scale_add(zero(), n, v.load_f32(address), address), out, np.uint64(64), 16, 16)

    return kernel
