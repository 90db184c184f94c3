"""What the kernels share whose states lie in registers: a warp has a row (or column) of a state, a lane every 32nd number of
it."""

WARPS = 4
"""Of a block of threads, a row each."""
MOST = 256
"""Numbers of a row."""

PARTS = (1, 2, 4, 8)
"""How many of them a lane may have: a few kernels serve all sizes."""


def parts_of(size: int) -> int:
    """The least of PARTS that is enough."""
    return next(n for n in PARTS if 32 * n >= size)
