"""Rows of any type as f32 lanes, and back: what kernels that do not depend on a type's bytes are written in.

Owns loads and stores of elements (lanes past the end are neither read nor written) and their conversion; knows no op.
Imported by factories only (Numba). A kind is a type's name in small letters ("f32", "q8_0"); a trailing "/" says that
elements lie apart by a stride of their own ("f32/"). `layout_of()` in layout.py names that of a tensor.
"""

from pyggml import simd as v
from pyggml.dtypes import SIZES, GGMLType
from pyggml.jit import inline
from pyggml.kernels.cpu.formats import blocks_32
from pyggml.kernels.cpu.layout import SOURCES, SUPER_ROOM

U = v.U
_LANES = {"f32": "f32", "f16": "u16", "bf16": "u16", "i32": "i32"}


def block_size(kind):
    """Elements a block."""
    return SIZES[GGMLType[kind.rstrip("/").upper()]].block_size


def type_size(kind):
    """Bytes a block."""
    return SIZES[GGMLType[kind.rstrip("/").upper()]].type_size


def _same():
    @inline
    def same(x):
        return x

    return same


def _f32_to_i32():
    """Towards zero; what fits no i32 becomes -2^31, as on x86."""
    limit, lowest = v.constant("f32", [2.0**31] * 16), v.constant("f32", [-(2.0**31)] * 16)

    @inline
    def convert(x):
        fits = v.where_less(v.absolute(x), limit(), x, lowest())
        return v.truncate_to_i32(fits)

    return convert


def _decoder(kind):
    return {"f32": _same, "f16": lambda: v.f16_to_f32, "bf16": lambda: v.bf16_to_f32, "i32": lambda: v.to_f32}[kind]()


def _encoder(kind):
    return {"f32": _same, "f16": lambda: v.f32_to_f16, "bf16": lambda: v.f32_to_bf16, "i32": _f32_to_i32}[kind]()


def loader(kind):
    """-> load(row, i, n, stride): elements i to i + n (n <= 16) of the row at address `row` as f32 lanes.

    Of block types i is a multiple of 16 and n is 16; `stride` matters to kinds with "/" alone.
    """
    name = kind.rstrip("/")
    if name not in _LANES:
        return _block_loader(name)
    elem, size, convert = _LANES[name], type_size(name), _decoder(name)
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


def _block_loader(name):
    if block_size(name) == 256:
        return _super_block_loader(name)
    low, high = blocks_32.DECODERS[name](0), blocks_32.DECODERS[name](1)
    size = type_size(name)

    @inline
    def load(row, i, n, stride):
        block = row + U((i >> 5) * size)
        if i & 16:
            return high(block)
        return low(block)

    return load


def _super_block_loader(name):
    from pyggml.kernels.cpu.formats import k_quants

    pick, size = k_quants.pick(name.upper()), type_size(name)

    @v.device
    def load(row, i, n, stride):
        return pick(row + U((i >> 8) * size), (i >> 4) & 15)

    return load


def storer(kind):
    """-> store(row, i, x, n, stride): the reverse of `loader`, for kinds that have no blocks."""
    name = kind.rstrip("/")
    size, convert = type_size(name), _encoder(name)
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
    whole blocks of the target. `room`: layout.work_bytes of the target's type."""
    size, pair = type_size(target), _any_pair_loader()
    if target not in blocks_32.ENCODERS:
        return _whole_quantiser(target, pair, size)
    encode = blocks_32.ENCODERS[target]()

    @inline
    def convert(to, source, stride, begin, end, number, room):
        for i in range(begin, end, 32):
            x, y = pair(source, i, stride, number)
            encode(to + U((i >> 5) * size), x, y)

    return convert


def _whole_quantiser(target, pair, size):
    """The same for blocks of which all values are put into work memory first."""
    from pyggml.kernels.cpu.formats import k_quants_encode, scalar_encoders

    encode = {**k_quants_encode.ENCODERS, **scalar_encoders.ENCODERS}[target]()
    assert k_quants_encode.ROOM <= SUPER_ROOM, k_quants_encode.ROOM
    values = block_size(target)

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
