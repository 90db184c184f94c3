"""Rows of any type as f32 lanes, and back: what kernels that do not depend on a type's bytes are written in.

Owns loads and stores of elements (lanes past the end are neither read nor written) and their conversion; knows no op.
Imported by factories only (Numba). A kind is a type's name in small letters ("f32", "q8_0"); a trailing "/" says that
elements lie apart by a stride of their own ("f32/"). `layout_of()` in layout.py names that of a tensor.
"""

from pyggml import simd as v
from pyggml.dtypes import SIZES, GGMLType
from pyggml.jit import inline
from pyggml.kernels.cpu.formats import FORMATS, Form, functions
from pyggml.kernels.cpu.formats.forms import Elements
from pyggml.kernels.cpu.formats.super_blocks import pick
from pyggml.kernels.cpu.layout import SOURCES

U = v.U


def type_of(kind):
    return GGMLType[kind.rstrip("/").upper()]


def block_size(kind):
    """Elements a block."""
    return SIZES[type_of(kind)].block_size


def type_size(kind):
    """Bytes a block."""
    return SIZES[type_of(kind)].type_size


def _f32_to_i32():
    """Towards zero; what fits no i32 becomes -2^31, as on x86."""
    limit, lowest = v.constant("f32", [2.0**31] * 16), v.constant("f32", [-(2.0**31)] * 16)

    @inline
    def convert(x):
        fits = v.where_less(v.absolute(x), limit(), x, lowest())
        return v.truncate_to_i32(fits)

    return convert


def _elements(dtype):
    """Of a type without blocks."""
    return Elements("i32", v.to_f32, _f32_to_i32()) if dtype == GGMLType.I32 else functions(dtype).elements()


def loader(kind):
    """-> load(row, i, n, stride): elements i to i + n (n <= 16) of the row at address `row` as f32 lanes.

    Of block types i is a multiple of 16 and n is 16; `stride` matters to kinds with "/" alone.
    """
    dtype, size = type_of(kind), type_size(kind)
    if block_size(kind) > 1:
        return _super_block_loader(dtype) if FORMATS[dtype].form is Form.SUPER_BLOCKS else _block_loader(dtype)
    elements = _elements(dtype)
    elem, convert = elements.elem, elements.to_f32
    if kind.endswith("/"):
        strided = v.strided_loader(elem)

        @inline
        def load(row, i, n, stride):
            return convert(strided(row + U(i * stride), stride, n))

        return load
    full, part = v.loader(elem, 16), v.part_loader(elem, 16)

    @inline
    def load(row, i, n, stride):
        at = row + U(i * size)
        if n == 16:
            return convert(full(at))
        return convert(part(at, n))

    return load


def _block_loader(dtype):
    half, size = functions(dtype).half, SIZES[dtype].type_size
    low, high = half(0), half(1)

    @inline
    def load(row, i, n, stride):
        block = row + U((i >> 5) * size)
        if i & 16:
            return high(block)
        return low(block)

    return load


def _super_block_loader(dtype):
    sixteen, size = pick(functions(dtype).super_blocks()), SIZES[dtype].type_size

    @v.device
    def load(row, i, n, stride):
        return sixteen(row + U((i >> 8) * size), (i >> 4) & 15)

    return load


def storer(kind):
    """-> store(row, i, x, n, stride): the reverse of `loader`, for kinds that have no blocks."""
    size, convert = type_size(kind), _elements(type_of(kind)).from_f32
    if kind.endswith("/"):

        @inline
        def store(row, i, x, n, stride):
            v.store_strided(row + U(i * stride), convert(x), stride, n)

        return store

    @inline
    def store(row, i, x, n, stride):
        at = row + U(i * size)
        if n == 16:
            v.store(at, convert(x))
        else:
            v.store_part(at, convert(x), n)

    return store


def mover(kind):
    """-> move(to, to_stride, source, stride, begin, end): elements [begin, end) of a row, bytes as they are."""
    size = type_size(kind)
    if not kind.endswith("/"):
        block = block_size(kind)

        @inline
        def move(to, to_stride, source, stride, begin, end):
            first = U(begin // block * size)
            v.copy_bytes(to + first, source + first, (end - begin) // block * size)

        return move

    @inline
    def move(to, to_stride, source, stride, begin, end):
        for i in range(begin, end):
            v.copy_bytes(to + U(i * to_stride), source + U(i * stride), size)

    return move


@v.device
def move_elements(to, to_stride, source, stride, count, size):
    """So many elements or blocks of `size` bytes, as they are."""
    if to_stride == size and stride == size:
        v.copy_bytes(to, source, count * size)
    elif size == 4:
        for i in range(count):
            v.put_i32(to + U(i * to_stride), v.i32_at(source + U(i * stride)))
    elif size == 2:
        for i in range(count):
            v.put_u16(to + U(i * to_stride), v.u16_at(source + U(i * stride)))
    else:
        for i in range(count):
            v.copy_bytes(to + U(i * to_stride), source + U(i * stride), size)


@v.device
def clear_elements(to, stride, count, size):
    """So many elements whose bytes are all 0."""
    if size == 4:
        for i in range(count):
            v.put_i32(to + U(i * stride), v.np.int32(0))
    else:
        for i in range(count):
            for j in range(size):
                v.put_u8(to + U(i * stride + j), v.np.uint8(0))


def converter(target, source):
    """-> convert(to, to_stride, source, stride, begin, end): elements [begin, end) of a row, whole blocks of both.

    The target has no blocks, unless both are the same type: `quantiser` makes those."""
    if target.rstrip("/") == source.rstrip("/"):
        return mover(target if target == source else target.rstrip("/") + "/")
    load, store = loader(source), storer(target)

    @inline
    def convert(to, to_stride, source, stride, begin, end):
        for i in range(begin, end, 16):
            n = min(16, end - i)
            store(to, i, load(source, i, n, stride), n, to_stride)

    return convert


def quantiser(target):
    """-> convert(to, source, stride, begin, end, number, room): elements [begin, end) of a row of kind SOURCES[number],
    whole blocks of the target. `room`: formats.work_bytes of the target's type."""
    size, pair, made = type_size(target), _any_pair_loader(), functions(type_of(target))
    if made.encode_pair is None:
        return _whole_quantiser(made.encode(), pair, size, block_size(target))
    encode = made.encode_pair()

    @inline
    def convert(to, source, stride, begin, end, number, room):
        for i in range(begin, end, 32):
            x, y = pair(source, i, stride, number)
            encode(to + U((i >> 5) * size), x, y)

    return convert


def _whole_quantiser(encode, pair, size, values):
    """The same for blocks of so many values, which are put into work memory first."""

    @inline
    def convert(to, source, stride, begin, end, number, room):
        for i in range(begin, end, values):
            for j in range(0, values, 32):
                x, y = pair(source, i + j, stride, number)
                v.store(room + U(4 * j), x)
                v.store(room + U(4 * j + 64), y)
            encode(to + U(i // values * size), room)

    return convert


def _any_pair_loader():
    """-> load(row, i, stride, number): elements i to i + 15 and i + 16 to i + 31 of a row of kind SOURCES[number]."""
    f32, f16, bf16, f32_apart, f16_apart, bf16_apart = (loader(kind) for kind in SOURCES)

    @v.device
    def load(row, i, stride, number):
        if number == 0:
            return f32(row, i, 16, stride), f32(row, i + 16, 16, stride)
        if number == 1:
            return f16(row, i, 16, stride), f16(row, i + 16, 16, stride)
        if number == 2:
            return bf16(row, i, 16, stride), bf16(row, i + 16, 16, stride)
        if number == 3:
            return f32_apart(row, i, 16, stride), f32_apart(row, i + 16, 16, stride)
        if number == 4:
            return f16_apart(row, i, 16, stride), f16_apart(row, i + 16, 16, stride)
        return bf16_apart(row, i, 16, stride), bf16_apart(row, i + 16, 16, stride)

    return load
