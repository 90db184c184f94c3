"""What can be done to weights before they are used: look for damage, and hold them in memory."""

import ctypes
import os
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from pyggml.dtypes import GGMLType
from pyggml.errors import ModelError
from pyggml.gguf import TensorInfo
from pyggml.quants import QUANTS, iq1_m
from pyggml.tensor import Tensor

SCALES = ("d", "m", "dmin")
"""Fields of blocks that hold f16 numbers, wherever they occur."""
PIECE = 16 << 20  # bytes looked at together: a multiple of every block's size is taken of it

_BITS = {  # of floats: the unsigned integer they lie in, and the bits of its exponent, all set in inf and NaN
    GGMLType.F32: ("<u4", 0x7F800000),
    GGMLType.F16: ("<u2", 0x7C00),
    GGMLType.BF16: ("<u2", 0x7F80),
    GGMLType.F64: ("<u8", 0x7FF0000000000000),
}


def check_tensors(tensors: Iterable[TensorInfo], progress: Callable[[int, int], None]) -> None:
    """Raises ModelError for a tensor with an infinity or NaN (ggml_validate_row_data in ggml-quants.c)."""
    tensors = list(tensors)
    total, done = sum(t.nbytes for t in tensors), 0
    for tensor in tensors:
        progress(done, total)
        first = _first_bad(tensor)
        if first is not None:
            raise ModelError(f"tensor {tensor.name} has invalid data: {tensor.type.name} block or element {first}")
        done += tensor.nbytes
    progress(total, total)


def _first_bad(tensor: TensorInfo) -> int | None:
    if tensor.type in _BITS:
        dtype, exponent = _BITS[tensor.type]
        return _first(tensor.data.view(dtype), exponent)
    if tensor.type not in QUANTS:
        return None
    layout = QUANTS[tensor.type].layout
    blocks = tensor.data.view(layout)
    if tensor.type == GGMLType.IQ1_M:
        return _first(iq1_m.scale_of_scales(blocks), 0x7C00)
    fields = [field for field in SCALES if field in (layout.names or ()) and layout[field] == np.dtype("<u2")]
    found = [_first(blocks[field], 0x7C00) for field in fields]
    return min((i for i in found if i is not None), default=None)


def _first(bits: NDArray[np.unsignedinteger], exponent: int) -> int | None:
    """Index of the first number whose exponent is all ones."""
    step = PIECE // bits.itemsize
    mask = bits.dtype.type(exponent)
    for at in range(0, bits.size, step):
        bad = (bits[at : at + step] & mask) == mask
        if bad.any():
            return at + int(bad.argmax())
    return None


def mlock(address: int, size: int) -> int:
    """The number of the system's error, 0 if there is none."""
    call = ctypes.CDLL(None, use_errno=True).mlock
    return ctypes.get_errno() if call(ctypes.c_void_p(address), ctypes.c_size_t(size)) else 0


def lock(weights: Iterable[Tensor]) -> str | None:
    """Have the system keep these tensors in memory (mlock); why it would not, None = it does."""
    done = 0
    for weight in weights:
        if error := mlock(weight.data, weight.nbytes):
            limit = "ulimit -l tells how many may be"
            return f"only {done} bytes of weights are locked in memory: {os.strerror(error)}; {limit}"
        done += weight.nbytes
    return None
