"""Pieces of a tensor that lie apart in it and together on the wire: SET_TENSOR_2D and GET_TENSOR_2D.

Owns the proof that they lie inside the tensor and share no byte, so that what is sent is never more than the tensor
holds; and their way into and out of a buffer. Facts: ggml-rpc.cpp, `set_tensor_2d`.
"""

import numpy as np

from pyggml.backend.host import HostBuffer
from pyggml.tensor import Tensor
from pyggml_rpc.connection import Piece
from pyggml_rpc.errors import RefusedError
from pyggml_rpc.records import check_range
from pyggml_rpc.wire import Record

CHUNK = 1 << 20  # bytes that wait between the wire and the tensor


class Pieces:
    """`n` pieces of `size` bytes, `stride` bytes apart, the first at `offset`."""

    def __init__(self, tensor: Tensor, request: Record) -> None:
        """Raises RefusedError. All in Python's integers, which do not wrap."""
        self.tensor = tensor
        fields = (int(request[name][0]) for name in ("offset", "size", "n_copies", "stride"))
        self.offset, self.size, self.n, self.stride = fields
        where = f"tensor {tensor.name!r}: {self.n} pieces of {self.size} bytes"
        if not self.n or not self.size:
            raise RefusedError(f"{where}: they are empty")
        if self.n > 1 and self.stride < self.size:
            raise RefusedError(f"{where}, {self.stride} bytes apart: they overlap")
        if self.n == 1:
            self.stride = self.size
        check_range(tensor, self.offset, (self.n - 1) * self.stride + self.size)
        self.total = self.n * self.size

    def view(self, first: int, count: int) -> np.ndarray | None:
        """uint8 (count, size): so many pieces where they lie, if that is this machine's memory."""
        buffer = self.tensor.buffer
        if not isinstance(buffer, HostBuffer):
            return None
        span = buffer.bytes_of(self.tensor, self.offset + first * self.stride, (count - 1) * self.stride + self.size)
        return np.lib.stride_tricks.as_strided(span, (count, self.size), (self.stride, 1))

    def get(self) -> Piece:
        """One after the other."""
        view, buffer = self.view(0, self.n), self.tensor.buffer
        if view is not None:
            return np.ascontiguousarray(view).reshape(-1).data
        assert buffer is not None
        return b"".join(buffer.get(self.tensor, self.offset + i * self.stride, self.size) for i in range(self.n))


class Arriving:
    """The bytes of SET_TENSOR_2D on their way in: `memory` for the next ones, `arrived` when they are there."""

    def __init__(self, pieces: Pieces) -> None:
        self.pieces = pieces
        self._done = 0
        self._waiting = 0
        self._between = bytearray(min(CHUNK, pieces.total))

    def memory(self) -> memoryview:
        """As many whole pieces as fit, or some of one."""
        p = self.pieces
        piece, begun = divmod(self._done, p.size)
        self._waiting = min(p.size - begun, CHUNK) if p.size > CHUNK else min(p.n - piece, CHUNK // p.size) * p.size
        return memoryview(self._between)[: self._waiting]

    def arrived(self) -> None:
        """The bytes for which `memory` gave room are there: put them where their pieces lie."""
        p, count = self.pieces, self._waiting
        came = np.frombuffer(self._between, np.uint8, count)
        piece, begun = divmod(self._done, p.size)
        self._done += count
        whole = count // p.size
        view = p.view(piece, whole) if whole else None
        if view is not None:
            view[...] = came.reshape(whole, p.size)
            return
        assert p.tensor.buffer is not None
        for part in came.reshape(max(whole, 1), -1):
            p.tensor.buffer.set(p.tensor, part.data, p.offset + piece * p.stride + begun)
            piece += 1
