"""What the kernels share whose states lie in registers: a warp has a row (or column) of a state, a lane every 32nd number of
it."""

WARPS = 4
"""Of a block of threads, a row each."""
MOST = 256
"""Numbers of a row."""


def parts_of(size: int) -> int:
    """How many numbers a lane has, rounded up so that a few kernels serve all sizes."""
    return 1 << max(0, (-(-size // 32) - 1).bit_length())
