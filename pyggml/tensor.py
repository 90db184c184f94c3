"""Tensor: what a node or leaf of a graph is, and Buffer, the memory that it lies in. Owns shapes, strides and views, and what
every kind of memory can do; does no arithmetic and knows no device.

Up to 4 dimensions, `ne[0]` innermost; strides `nb` in bytes; the fields are those of `struct ggml_tensor` (ggml.h).
"""

from __future__ import annotations

import copy
import struct
from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import Enum, IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyggml.dtypes import SIZES, GGMLType, row_size
from pyggml.errors import ShapeError

Bytes = bytes | bytearray | memoryview | NDArray[np.uint8]

MAX_SRC = 10
MAX_NAME = 64
OP_PARAMS_BYTES = 64
NO_PARAMS = bytes(OP_PARAMS_BYTES)


class Flag(IntEnum):
    """Bits of `flags`, which is a plain int: an IntFlag takes a microsecond for each `&`."""

    INPUT = 1
    OUTPUT = 2
    PARAM = 4
    LOSS = 8
    COMPUTE = 16


class Tensor:
    """`type`, `ne`, `nb`, the op that makes it, and where it lives.

    `data` is an address in the own space of `buffer`'s device; 0 means not placed yet. `view_src` is always the root
    of a chain of views and `view_offs` the distance from its data in bytes.
    """

    __slots__ = (
        "_nbytes",
        "buffer",
        "data",
        "flags",
        "name",
        "nb",
        "ne",
        "op",
        "op_params",
        "src",
        "type",
        "view_offs",
        "view_src",
    )

    def __init__(
        self,
        dtype: GGMLType,
        ne: Sequence[int],
        nb: tuple[int, int, int, int] | None = None,
        *,
        op: int = 0,
        op_params: bytes = NO_PARAMS,
        src: Sequence[Tensor | None] = (),
        view_src: Tensor | None = None,
        view_offs: int = 0,
        flags: int = 0,
        name: str = "",
    ) -> None:
        if not 1 <= len(ne) <= 4:
            raise ShapeError(f"{name or 'tensor'}: {len(ne)} dimensions, must be 1 to 4")
        if min(ne) < 0:
            raise ShapeError(f"{name or 'tensor'}: negative dimension in {list(ne)}")
        a, b, c, d = ne if len(ne) == 4 else (*ne, 1, 1, 1)[:4]
        self.type = dtype
        self.ne: tuple[int, int, int, int] = (a, b, c, d)
        self.nb: tuple[int, int, int, int] = nb if nb is not None else contiguous_strides(dtype, self.ne)
        self.op = op
        self.op_params = op_params
        self.flags = flags
        self.src = tuple(src)
        self.view_src = view_src
        self.view_offs = view_offs
        self.name = name
        self.buffer: Buffer | None = None
        self.data = 0
        self._nbytes = -1  # not asked yet

    def __repr__(self) -> str:
        return f"<Tensor {self.name or '?'} {self.type.name} {list(self.ne)} op {self.op}>"

    @property
    def nelements(self) -> int:
        a, b, c, d = self.ne
        return a * b * c * d

    @property
    def nrows(self) -> int:
        return self.ne[1] * self.ne[2] * self.ne[3]

    @property
    def n_dims(self) -> int:
        """Dimensions up to the last one that is not 1, at least 1 (ggml.c: ggml_n_dims)."""
        return max((i + 1 for i in range(4) if self.ne[i] != 1), default=1)

    @property
    def nbytes(self) -> int:
        """Distance from the first byte to the end of the last one, strides included (ggml.c: ggml_nbytes)."""
        known = self._nbytes
        if known < 0:
            known = self._nbytes = self._count_bytes()
        return known

    def _count_bytes(self) -> int:
        (n0, n1, n2, n3), (b0, b1, b2, b3) = self.ne, self.nb
        if not (n0 and n1 and n2 and n3):
            return 0
        block_size, type_size = SIZES[self.type]
        rest = (n1 - 1) * b1 + (n2 - 1) * b2 + (n3 - 1) * b3
        if block_size == 1:
            return type_size + (n0 - 1) * b0 + rest
        return n0 * b0 // block_size + rest

    def reshaped(self, ne: tuple[int, int, int, int], nb: tuple[int, int, int, int]) -> Tensor:
        """The same bytes in another shape, for who looks at nothing else."""
        other = copy.copy(self)
        other.ne, other.nb, other._nbytes = ne, nb, -1
        return other

    @property
    def is_contiguous(self) -> bool:
        return self.is_contiguous_from(0)

    def is_contiguous_from(self, dim: int) -> bool:
        """Whether elements lie densely, dimensions 1 to `dim` allowed to be padded (ggml.c: ggml_is_contiguous_n)."""
        block_size, step = SIZES[self.type]
        if self.ne[0] != block_size and self.nb[0] != step:
            return False
        step *= self.ne[0] // block_size
        for i in range(1, 4):
            if i > dim:
                if self.ne[i] != 1 and self.nb[i] != step:
                    return False
                step *= self.ne[i]
            else:
                step = self.ne[i] * self.nb[i]
        return True

    @property
    def is_transposed(self) -> bool:
        return self.nb[0] > self.nb[1]

    @property
    def is_view(self) -> bool:
        return self.view_src is not None

    def param_i32(self, index: int) -> int:
        """Number `index` of the parameters, read as i32."""
        value: int = struct.unpack_from("<i", self.op_params, 4 * index)[0]
        return value

    def param_f32(self, index: int) -> float:
        """Number `index` of the parameters, read as f32."""
        value: float = struct.unpack_from("<f", self.op_params, 4 * index)[0]
        return value


def made_by(op: int, op_params: bytes, src: tuple[Tensor | None, ...], name: str) -> Tensor:
    """A node whose type, shape and strides are yet to be said (F32, of no elements)."""
    node = Tensor.__new__(Tensor)
    node.type = GGMLType.F32
    node.ne = node.nb = (0, 0, 0, 0)
    node.op, node.op_params, node.src, node.name = op, op_params, src, name
    node.flags = node.view_offs = node.data = 0
    node._nbytes = -1
    node.view_src = node.buffer = None
    return node


def view_of(
    a: Tensor,
    op: int,
    op_params: bytes,
    ne: tuple[int, int, int, int],
    nb: tuple[int, int, int, int],
    offset: int,
    name: str,
) -> Tensor:
    """A view of a's bytes from `offset` on."""
    node = made_by(op, op_params, (a,), name)
    node.type, node.ne, node.nb = a.type, ne, nb
    node.view_src, node.view_offs = a.view_src or a, a.view_offs + offset
    return node


class Usage(Enum):
    """What a buffer is for, as ggml_backend_buffer_usage has it."""

    ANY = 0
    WEIGHTS = 1
    COMPUTE = 2


class Buffer(ABC):
    """`size` bytes of a device's memory, all zero in the beginning: what another program or another client of a server left
    there is never seen. `base` is the address of its first byte in the device's own space."""

    device: Any
    """The Device (backend/base.py) whose memory it is."""
    base: int
    size: int
    usage: Usage

    @abstractmethod
    def set(self, tensor: Tensor, data: Bytes, offset: int = 0) -> None:
        """Write `data` at `offset` bytes into the tensor."""

    @abstractmethod
    def get(self, tensor: Tensor, offset: int = 0, size: int | None = None) -> bytes:
        """Read `size` bytes (all of the tensor) from `offset`."""

    @abstractmethod
    def memset(self, tensor: Tensor, value: int, offset: int = 0, size: int | None = None) -> None:
        """Fill `size` bytes of the tensor (all of it) with one byte value."""

    @abstractmethod
    def clear(self, value: int) -> None:
        """Fill the whole buffer with one byte value."""

    @abstractmethod
    def copy(self, src: Tensor, dst: Tensor) -> bool:
        """Copy src's bytes to dst (which lives here) without passing through the host; False = cannot."""

    @abstractmethod
    def free(self) -> None:
        """Give the memory back; twice does nothing."""

    def place(self, tensor: Tensor, offset: int) -> None:
        """Let the tensor live `offset` bytes from the base."""
        assert offset >= 0 and offset + tensor.nbytes <= self.size, (tensor, offset, tensor.nbytes, self.size)
        tensor.buffer = self
        tensor.data = self.base + offset


def contiguous_strides(dtype: GGMLType, ne: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Strides in bytes of a dense tensor. Raises ShapeError when a row is no whole number of blocks."""
    block_size, type_size = SIZES[dtype]
    n0, n1, n2, _ = ne
    nb1 = n0 * type_size if block_size == 1 else row_size(dtype, n0)
    nb2 = nb1 * n1
    return type_size, nb1, nb2, nb2 * n2


def pack_params(layout: str, *values: float) -> bytes:
    """op_params from a struct layout of `i` and `f`, padded with zeros to 64 bytes."""
    return struct.pack("<" + layout, *values).ljust(OP_PARAMS_BYTES, b"\0")
