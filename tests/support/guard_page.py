"""Memory that ends at a page which cannot be touched: who reads or writes past its end is killed at once."""

import ctypes
import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

PAGE = mmap.PAGESIZE

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def forbid(address: int, size: int) -> None:
    """No access to whole pages of memory of ours."""
    assert _libc.mprotect(address, size, 0) == 0, ctypes.get_errno()


def at_the_end(size: int) -> NDArray[Any]:
    """`size` bytes, behind which lies a page that cannot be touched. Freed with the array."""
    pages = -(-size // PAGE)
    everything = np.frombuffer(mmap.mmap(-1, (pages + 1) * PAGE), np.uint8)
    forbid(everything.ctypes.data + pages * PAGE, PAGE)
    return everything[pages * PAGE - size : pages * PAGE]
