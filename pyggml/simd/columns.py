"""Columns of 16 rows: what lies at one place of 16 rows of blocks, a row a lane.

Rows lie `stride` bytes apart, all 16 of them. Sixteen bytes of each row are loaded at once, as four words of 32 bits, and
transposed before anything is unpacked: nibbles are then half as many registers. A set of columns
is a `Tile` of words.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from pyggml.simd import codegen as cg
from pyggml.simd import exponent
from pyggml.simd.tables import emit_table
from pyggml.simd.vectors import Tile, Vec

_WORDS = ir.VectorType(cg.I32, 16)
_RUN = ir.VectorType(cg.I32, 4)
_LOW = [i + 4 * j + k for j in range(4) for i in (0, 1) for k in (0, 16)]
_HIGH = [i + 2 for i in _LOW]
_EARLY = [4 * j + k + i for j in range(4) for k in (0, 16) for i in (0, 1)]
_LATE = [i + 2 for i in _EARLY]


def _run(b, x, stride, at, wanted=4):
    """The four words at x + at of 16 rows, or the first: rows 4 g to 4 g + 3 become piece g of 128 bits."""
    part = []
    for i in range(4):
        rows = []
        for g in range(4):
            address = b.add(x, b.mul(stride, ir.Constant(stride.type, 4 * g)))
            address = b.add(address, b.mul(stride, ir.Constant(stride.type, i)))
            rows.append(b.load(cg.ptr(b, b.add(address, ir.Constant(x.type, at)), _RUN), align=1))
        part.append(cg.join(b, rows))
    a0, b0 = cg.shuffle(b, part[0], part[1], _LOW), cg.shuffle(b, part[2], part[3], _LOW)
    if wanted == 1:
        return [cg.shuffle(b, a0, b0, _EARLY)]
    a1, b1 = cg.shuffle(b, part[0], part[1], _HIGH), cg.shuffle(b, part[2], part[3], _HIGH)
    return [cg.shuffle(b, p, q, lanes) for p, q in ((a0, b0), (a1, b1)) for lanes in (_EARLY, _LATE)]


def _splat(value):
    return cg.const(_WORDS, [value] * 16)


def _columns(count, emit):
    """-> f(x, stride) -> Tile of `count` columns."""
    out = Tile("i32", count)

    @intrinsic
    def columns(tyctx, x, stride):
        return out(types.uintp, types.uintp), lambda ctx, b, sig, a: cg.tile(b, emit(b, *a))

    return columns


def columns_of_nibbles(at, levels=None, fifth=None):
    """-> f(x, stride): 8 columns: the low halves of the 16 bytes at `at`, then the high ones; with `levels` (sixteen
    i8) what stands there in the table, with `fifth` 16 more where one of the 32 bits there is set. The 12 bytes behind
    those bits are read too."""
    levels = levels if levels is None else [int(e) for e in levels]

    def emit(b, x, stride):
        words = _run(b, x, stride, at)
        out = [b.and_(w, _splat(0x0F0F0F0F)) for w in words]
        out += [b.and_(b.lshr(w, _splat(4)), _splat(0x0F0F0F0F)) for w in words]
        if fifth is not None:
            (word,) = _run(b, x, stride, fifth, 1)
            out = [b.or_(w, _sixteens(b, b.lshr(word, _splat(4 * j)))) for j, w in enumerate(out)]
        return out if levels is None else [_looked_up(b, w, levels) for w in out]

    return _columns(8, emit)


def _sixteens(b, words):
    """Of each lane four bytes: 16 where bit 0, 1, 2, 3 is set, else 0."""
    spread = sum(16 << 7 * i for i in range(4))  # bit i to bit 8 i + 4; no two meet
    return b.and_(b.mul(b.and_(words, _splat(15)), _splat(spread)), _splat(0x10101010))


def _looked_up(b, words, levels):
    return b.bitcast(emit_table(b, levels, b.bitcast(words, ir.VectorType(cg.I8, 64))), _WORDS)


def columns_of_bytes(at):
    """-> f(x, stride): 8 columns: the 32 bytes at `at`."""
    return _columns(8, lambda b, x, stride: _run(b, x, stride, at) + _run(b, x, stride, at + 16))


def halves_at(at):
    """-> f(x, stride): f32 x 16 from the f16 at `at`, an even offset, of each row. Up to 14 bytes before it are read, or the first
    16 of each row; nothing behind them."""
    before = max(at - 14, 0)
    word, right = (at - before) // 4, 8 * ((at - before) % 4)
    assert at % 2 == 0
    out = Vec("f32", 16)

    @intrinsic
    def column(tyctx, x, stride):
        def codegen(ctx, b, sig, a):
            words = _run(b, *a, before, 1 if word == 0 else 4)
            return cg.f16_to_f32(b, b.trunc(b.lshr(words[word], _splat(right)), ir.VectorType(cg.I16, 16)))

        return out(types.uintp, types.uintp), codegen

    return column


def exponents_at(at):
    """-> f(x, stride): f32 x 16 from the byte of E8M0 at `at` of each row. The 15 bytes behind it are read too."""
    out = Vec("f32", 16)

    @intrinsic
    def column(tyctx, x, stride):
        def codegen(ctx, b, sig, a):
            (word,) = _run(b, *a, at, 1)
            return exponent.emit(b, b.and_(word, _splat(255)))

        return out(types.uintp, types.uintp), codegen

    return column


@intrinsic
def signed_columns(tyctx, x):
    """Columns of i8 in the form in which `dot4_weights` wants them (dot.signed_weights)."""

    def codegen(ctx, b, sig, a):
        return cg.tile(b, [b.xor(w, _splat(0x80808080)) for w in cg.columns(b, a[0], x.count)])

    return x(x), codegen if cg.HAS_VNNI else lambda ctx, b, sig, a: a[0]


@intrinsic
def put_columns(tyctx, addr, x):
    """Each column in turn, 64 bytes."""

    def codegen(ctx, b, sig, a):
        for i, w in enumerate(cg.columns(b, a[1], x.count)):
            b.store(w, cg.ptr(b, b.add(a[0], ir.Constant(a[0].type, 64 * i)), _WORDS), align=1)
        return ctx.get_dummy_value()

    return types.none(types.uintp, x), codegen


def put_columns_of(columns, levels=None, signed=False):
    """-> f(to, x, stride): columns of bytes, 64 bytes each, one after another. A column is a list of parts
    (at, word, right, keep, left): the bytes of a word of the sixteen at `at`, moved right, cut to the bits `keep`, moved
    left; its parts are put together. With `levels` what stands there in the table; `signed`: as `signed_columns` has it."""
    levels = levels if levels is None else [int(e) for e in levels]

    @intrinsic
    def put(tyctx, to, x, stride):
        def codegen(ctx, b, sig, a):
            runs = {}
            for i, parts in enumerate(columns):
                column = _together(b, runs, a[1], a[2], [(*p[:3], p[3] * 0x01010101, p[4]) for p in parts])
                column = column if levels is None else _looked_up(b, column, levels)
                if signed and cg.HAS_VNNI:
                    column = b.xor(column, _splat(0x80808080))
                b.store(column, cg.ptr(b, b.add(a[0], ir.Constant(a[0].type, 64 * i)), _WORDS), align=1)
            return ctx.get_dummy_value()

        return types.none(types.uintp, types.uintp, types.uintp), codegen

    return put


def _together(b, runs, x, stride, parts):
    """Words of 32 bits; `runs` remembers what was loaded."""
    column = None
    for at, word, right, keep, left in parts:
        if at not in runs:
            runs[at] = _run(b, x, stride, at)
        w = runs[at][word]
        w = b.and_(b.lshr(w, _splat(right)) if right else w, _splat(keep))
        w = b.shl(w, _splat(left)) if left else w
        column = w if column is None else b.or_(column, w)
    return column


def put_products_of(numbers, halves, flip=0, less=0):
    """-> f(to, x, stride): f32 columns, 64 bytes each, one after another. A number is (parts, half): its parts as for
    `put_columns_of`, but of whole words, with the bits `flip` changed, minus `less`, times that one of `halves`, of
    which each is (at, word, right, sign): an f16 in a word of the sixteen bytes at `at`, moved right, times the sign."""

    @intrinsic
    def put(tyctx, to, x, stride):
        def codegen(ctx, b, sig, a):
            runs, scales = {}, []
            f32 = ir.VectorType(cg.F32, 16)
            for at, word, right, sign in halves:
                half = b.trunc(
                    _together(b, runs, a[1], a[2], [(at, word, right, 0xFFFF, 0)]), ir.VectorType(cg.I16, 16)
                )
                scales.append(b.fmul(cg.f16_to_f32(b, half), cg.const(f32, [sign] * 16)))
            for i, (parts, half) in enumerate(numbers):
                column = _together(b, runs, a[1], a[2], parts)
                column = b.sub(b.xor(column, _splat(flip)), _splat(less))
                product = b.fmul(b.sitofp(column, f32), scales[half])
                b.store(product, cg.ptr(b, b.add(a[0], ir.Constant(a[0].type, 64 * i)), f32), align=1)
            return ctx.get_dummy_value()

        return types.none(types.uintp, types.uintp, types.uintp), codegen

    return put
