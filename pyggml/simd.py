"""LLVM vectors as Numba values: the words that CPU kernels are written in.

Owns the vector types, loads and stores, arithmetic, the integer dot product, atomics. Knows no tensor and no block
format. Registers are 512 bits wide in thought (16 x f32, 64 x u8); LLVM splits them for narrower machines, so a kernel
reads the same at every level. Instructions that have no generic spelling are chosen by `LEVEL`. Nothing here depends
on the order in which lanes are summed by chance: `hsum` is a fixed tree.
"""

import operator

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

from pyggml.jit import LEVELS, device, level

LEVEL = level()
HAS_FMA = LEVEL in ("v3", "v4", "vnni")
HAS_F16C = HAS_FMA
HAS_VNNI = LEVEL == "vnni"

U = np.uintp
_I1, _I8, _I16, _I32, _I64 = (ir.IntType(n) for n in (1, 8, 16, 32, 64))
_F32 = ir.FloatType()
_SCALAR = {"u8": _I8, "i8": _I8, "u16": _I16, "i16": _I16, "i32": _I32, "u32": _I32, "f32": _F32}


class Vec(types.Type):
    """`n` lanes of `elem` ("u8" ... "f32"), held in one LLVM vector value."""

    def __init__(self, elem, n):
        self.elem, self.n = elem, n
        super().__init__(name=f"vec<{elem}x{n}>")

    @property
    def ir(self):
        return ir.VectorType(_SCALAR[self.elem], self.n)


@register_model(Vec)
class _VecModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, fe_type.ir)


# ---- building blocks of code generation


def _call(b, name, ret, args):
    fnty = ir.FunctionType(ret, [a.type for a in args])
    return b.call(cgutils.get_or_insert_function(b.module, fnty, name), args)


def _shuffle(b, x, y, index):
    y = ir.Constant(x.type, ir.Undefined) if y is None else y
    return b.shuffle_vector(x, y, ir.Constant(ir.VectorType(_I32, len(index)), list(index)))


def _splat(b, value, n):
    vty = ir.VectorType(value.type, n)
    return _shuffle(b, b.insert_element(ir.Constant(vty, ir.Undefined), value, _I32(0)), None, [0] * n)


def _const(vty, values):
    return ir.Constant(vty, list(values))


def _ptr(b, addr, ty):
    return b.inttoptr(addr, ty.as_pointer())


def _part(b, v, count, index):
    """Cut a vector in `count` equal pieces and return piece `index`."""
    n = v.type.count // count
    return _shuffle(b, v, None, range(index * n, (index + 1) * n))


def _join(b, parts):
    while len(parts) > 1:
        n = parts[0].type.count * 2
        parts = [_shuffle(b, parts[i], parts[i + 1], range(n)) for i in range(0, len(parts), 2)]
    return parts[0]


def _in_parts(b, count, function, *vectors):
    """Apply an instruction of a narrower width to each piece of the vectors."""
    if count == 1:
        return function(*vectors)
    return _join(b, [function(*(_part(b, v, count, i) for v in vectors)) for i in range(count)])


# ---- scalars in memory (addresses are uintp)


def _scalar_load(llvm_type, numba_type):
    @intrinsic
    def load(tyctx, addr):
        return numba_type(types.uintp), lambda ctx, b, sig, a: b.load(_ptr(b, a[0], llvm_type), align=1)

    return load


def _scalar_store(llvm_type, numba_type):
    @intrinsic
    def store(tyctx, addr, value):
        def codegen(ctx, b, sig, a):
            b.store(a[1], _ptr(b, a[0], llvm_type), align=1)
            return ctx.get_dummy_value()

        return types.none(types.uintp, numba_type), codegen

    return store


f32_at, i32_at, i64_at = (
    _scalar_load(t, n) for t, n in ((_F32, types.float32), (_I32, types.int32), (_I64, types.int64))
)
u8_at, u16_at, u64_at = (_scalar_load(t, n) for t, n in ((_I8, types.uint8), (_I16, types.uint16), (_I64, types.uintp)))
put_f32, put_i32 = _scalar_store(_F32, types.float32), _scalar_store(_I32, types.int32)
put_u8, put_u16 = _scalar_store(_I8, types.uint8), _scalar_store(_I16, types.uint16)
put_i64 = _scalar_store(_I64, types.int64)


# ---- vectors in memory


def loader(elem, n):
    """-> load(addr): n lanes from memory, any alignment."""
    vec = Vec(elem, n)

    @intrinsic
    def load(tyctx, addr):
        return vec(types.uintp), lambda ctx, b, sig, a: b.load(_ptr(b, a[0], vec.ir), align=1)

    return load


def broadcaster(mem, elem, n):
    """-> load(addr): the scalar `mem` ("i32", "f32") repeated over a register of n lanes of `elem`."""
    vec = Vec(elem, n)
    scalar = _SCALAR[mem]

    @intrinsic
    def load(tyctx, addr):
        def codegen(ctx, b, sig, a):
            value = b.load(_ptr(b, a[0], scalar), align=1)
            return b.bitcast(
                _splat(b, value, vec.n * vec.ir.element.width // 32 if vec.elem != "f32" else vec.n), vec.ir
            )

        return vec(types.uintp), codegen

    return load


def _mask(b, count, n):
    """i1 x n: lane < count (an i64)."""
    lanes = _const(ir.VectorType(_I32, n), range(n))
    return b.icmp_signed("<", lanes, _splat(b, b.trunc(count, _I32), n))


def _suffix(vty):
    return f"v{vty.count}{'f32' if vty.element == _F32 else 'i' + str(vty.element.width)}"


def part_loader(elem, n):
    """-> load(addr, count): lanes below `count` from memory, zero in the others; touches no byte beyond."""
    vec = Vec(elem, n)

    @intrinsic
    def load(tyctx, addr, count):
        def codegen(ctx, b, sig, a):
            p = _ptr(b, a[0], vec.ir)
            name = f"llvm.masked.load.{_suffix(vec.ir)}.p0"
            mask = _mask(b, a[1], n)
            fnty = ir.FunctionType(vec.ir, [p.type, _I32, mask.type, vec.ir])
            fn = cgutils.get_or_insert_function(b.module, fnty, name)
            return b.call(fn, [p, _I32(1), mask, ir.Constant(vec.ir, None)])

        return vec(types.uintp, types.int64), codegen

    return load


@intrinsic
def store(tyctx, addr, v):
    """Write a vector, any alignment."""

    def codegen(ctx, b, sig, a):
        b.store(a[1], _ptr(b, a[0], a[1].type), align=1)
        return ctx.get_dummy_value()

    return types.none(types.uintp, v), codegen


@intrinsic
def store_part(tyctx, addr, v, count):
    """Write the lanes below `count` and touch no byte beyond."""

    def codegen(ctx, b, sig, a):
        p = _ptr(b, a[0], a[1].type)
        mask = _mask(b, a[2], v.n)
        fnty = ir.FunctionType(ir.VoidType(), [a[1].type, p.type, _I32, mask.type])
        fn = cgutils.get_or_insert_function(b.module, fnty, f"llvm.masked.store.{_suffix(a[1].type)}.p0")
        b.call(fn, [a[1], p, _I32(1), mask])
        return ctx.get_dummy_value()

    return types.none(types.uintp, v, types.int64), codegen


@intrinsic
def prefetch(tyctx, addr):
    def codegen(ctx, b, sig, a):
        p = _I8.as_pointer()
        fnty = ir.FunctionType(ir.VoidType(), [p, _I32, _I32, _I32])
        fn = cgutils.get_or_insert_function(b.module, fnty, "llvm.prefetch.p0")
        b.call(fn, [b.inttoptr(a[0], p), _I32(0), _I32(3), _I32(1)])
        return ctx.get_dummy_value()

    return types.none(types.uintp), codegen


load_f32, load_f32x8 = loader("f32", 16), loader("f32", 8)
load_i32, load_i8, load_u8 = loader("i32", 16), loader("i8", 64), loader("u8", 64)
load_u8x16, load_u8x32, load_u16, load_u16x8 = loader("u8", 16), loader("u8", 32), loader("u16", 16), loader("u16", 8)
load_f32_part, load_u16_part = part_loader("f32", 16), part_loader("u16", 16)
broadcast_f32 = broadcaster("f32", "f32", 16)
broadcast_i32 = broadcaster("i32", "i32", 16)
broadcast_4i8 = broadcaster("i32", "i8", 64)


# ---- making vectors


def constant(elem, values):
    """-> f(): a vector of fixed values."""
    vec = Vec(elem, len(values))

    @intrinsic
    def make(tyctx):
        return vec(), lambda ctx, b, sig, a: _const(vec.ir, values)

    return make


def zeros(elem, n):
    return constant(elem, [0] * n)


zero_f32, zero_f32x8, zero_i32 = zeros("f32", 16), zeros("f32", 8), zeros("i32", 16)


@intrinsic
def splat_f32(tyctx, x):
    return Vec("f32", 16)(types.float32), lambda ctx, b, sig, a: _splat(b, a[0], 16)


@intrinsic
def splat_i32(tyctx, x):
    return Vec("i32", 16)(types.int32), lambda ctx, b, sig, a: _splat(b, a[0], 16)


def splat_like(elem, n):
    """-> f(x): a scalar repeated over n lanes of `elem`; x is f32 for "f32", else i64."""
    vec = Vec(elem, n)
    kind = types.float32 if elem == "f32" else types.int64

    @intrinsic
    def splat(tyctx, x):
        def codegen(ctx, b, sig, a):
            value = a[0] if elem == "f32" else b.trunc(a[0], vec.ir.element)
            return _splat(b, value, n)

        return vec(kind), codegen

    return splat


# ---- arithmetic: + - * & | ^ << >> on equal vectors (>> is logical for unsigned lanes)


def _register_operator(ops, codegen, floats=True, integers=True):
    class Same(AbstractTemplate):
        def generic(self, args, kws):
            if len(args) == 2 and isinstance(args[0], Vec) and args[0] == args[1]:
                is_float = args[0].elem == "f32"
                if (is_float and floats) or (not is_float and integers):
                    return signature(args[0], *args)
            return None

    for op in ops:
        infer_global(op)(Same)
        lower_builtin(op, Vec, Vec)(lambda ctx, b, sig, a: codegen(b, sig.args[0], *a))


_register_operator([operator.add, operator.iadd], lambda b, v, x, y: b.fadd(x, y) if v.elem == "f32" else b.add(x, y))
_register_operator([operator.sub, operator.isub], lambda b, v, x, y: b.fsub(x, y) if v.elem == "f32" else b.sub(x, y))
_register_operator([operator.mul, operator.imul], lambda b, v, x, y: b.fmul(x, y) if v.elem == "f32" else b.mul(x, y))
_register_operator([operator.truediv], lambda b, v, x, y: b.fdiv(x, y), integers=False)
_register_operator([operator.and_, operator.iand], lambda b, v, x, y: b.and_(x, y), floats=False)
_register_operator([operator.or_, operator.ior], lambda b, v, x, y: b.or_(x, y), floats=False)
_register_operator([operator.xor], lambda b, v, x, y: b.xor(x, y), floats=False)
_register_operator([operator.lshift], lambda b, v, x, y: b.shl(x, y), floats=False)
_register_operator(
    [operator.rshift], lambda b, v, x, y: b.lshr(x, y) if v.elem[0] == "u" else b.ashr(x, y), floats=False
)


def _fma(b, x, y, z):
    if not HAS_FMA:  # llvm.fma would be a library call
        return b.fadd(b.fmul(x, y), z)
    return _call(b, f"llvm.fma.{_suffix(x.type)}", x.type, [x, y, z])


@intrinsic
def fma(tyctx, x, y, z):
    """x * y + z."""
    return x(x, y, z), lambda ctx, b, sig, a: _fma(b, *a)


@intrinsic
def maximum(tyctx, x, y):
    """Per lane; a NaN in x gives y."""
    return x(x, y), lambda ctx, b, sig, a: b.select(b.fcmp_ordered(">", a[0], a[1]), a[0], a[1])


@intrinsic
def minimum(tyctx, x, y):
    """Per lane; a NaN in x gives y."""
    return x(x, y), lambda ctx, b, sig, a: b.select(b.fcmp_ordered("<", a[0], a[1]), a[0], a[1])


@intrinsic
def absolute(tyctx, v):
    """|v| of f32 lanes."""

    def codegen(ctx, b, sig, a):
        bits = ir.VectorType(_I32, v.n)
        return b.bitcast(b.and_(b.bitcast(a[0], bits), _const(bits, [0x7FFFFFFF] * v.n)), a[0].type)

    return v(v), codegen


@intrinsic
def sqrt(tyctx, v):
    return v(v), lambda ctx, b, sig, a: _call(b, f"llvm.sqrt.{_suffix(a[0].type)}", a[0].type, [a[0]])


@intrinsic
def where_less(tyctx, x, y, yes, no):
    """Per lane: x < y ? yes : no (f32)."""
    return yes(x, y, yes, no), lambda ctx, b, sig, a: b.select(b.fcmp_ordered("<", a[0], a[1]), a[2], a[3])


@intrinsic
def where_equal(tyctx, x, y, yes, no):
    """Per lane: x == y ? yes : no (f32); NaN equals nothing."""
    return yes(x, y, yes, no), lambda ctx, b, sig, a: b.select(b.fcmp_ordered("==", a[0], a[1]), a[2], a[3])


@intrinsic
def to_f32(tyctx, v):
    """i32 lanes -> f32."""
    out = Vec("f32", v.n)
    return out(v), lambda ctx, b, sig, a: b.sitofp(a[0], out.ir)


@intrinsic
def truncate_to_i32(tyctx, v):
    """f32 lanes -> i32, towards zero. Lanes must be in range."""
    out = Vec("i32", v.n)
    return out(v), lambda ctx, b, sig, a: b.fptosi(a[0], out.ir)


@intrinsic
def round_even(tyctx, v):
    """f32 lanes to the nearest integer, halves to even, as f32. |lane| < 2^22."""

    def codegen(ctx, b, sig, a):
        magic = ir.Constant(a[0].type, [12582912.0] * v.n)  # 1.5 * 2^23: the sum has no bits below 1
        return b.fsub(b.fadd(a[0], magic), magic)

    return v(v), codegen


@intrinsic
def i32_to_i8(tyctx, v):
    """Low byte of each lane."""
    out = Vec("i8", v.n)
    return out(v), lambda ctx, b, sig, a: b.trunc(a[0], out.ir)


@intrinsic
def f32_bits(tyctx, v):
    """The same bits as i32 lanes."""
    out = Vec("i32", v.n)
    return out(v), lambda ctx, b, sig, a: b.bitcast(a[0], out.ir)


@intrinsic
def bits_f32(tyctx, v):
    """i32 lanes taken as the bits of f32."""
    out = Vec("f32", v.n)
    return out(v), lambda ctx, b, sig, a: b.bitcast(a[0], out.ir)


# ---- sums over lanes, in a fixed order


def _tree(b, v, combine):
    while v.type.count > 1:
        half = v.type.count // 2
        v = combine(_shuffle(b, v, None, range(half)), _shuffle(b, v, None, range(half, 2 * half)))
    return b.extract_element(v, _I32(0))


@intrinsic
def hsum(tyctx, v):
    """Sum of the lanes: upper half onto lower half until one is left."""
    out = types.float32 if v.elem == "f32" else types.int32
    return out(v), lambda ctx, b, sig, a: _tree(b, a[0], b.fadd if v.elem == "f32" else b.add)


@intrinsic
def hmax(tyctx, v):
    """Largest f32 lane; NaN lanes may be dropped."""

    def codegen(ctx, b, sig, a):
        return _tree(b, a[0], lambda x, y: b.select(b.fcmp_ordered(">", x, y), x, y))

    return types.float32(v), codegen


@intrinsic
def lane(tyctx, v, index):
    """One f32 lane."""
    return types.float32(v, types.int64), lambda ctx, b, sig, a: b.extract_element(a[0], a[1])


def shuffler(index):
    """-> f(v): lanes index[0], index[1] ... of v."""

    @intrinsic
    def shuffle(tyctx, v):
        out = Vec(v.elem, len(index))
        return out(v), lambda ctx, b, sig, a: _shuffle(b, a[0], None, index)

    return shuffle


@intrinsic
def join(tyctx, x, y):
    """The lanes of x, then those of y."""
    out = Vec(x.elem, 2 * x.n)
    return out(x, y), lambda ctx, b, sig, a: _join(b, list(a))


@intrinsic
def as_i8(tyctx, v):
    """u8 lanes taken as signed, and back."""
    out = Vec("i8" if v.elem == "u8" else "u8", v.n)
    return out(v), lambda ctx, b, sig, a: a[0]


# ---- half precision


def _f16_to_f32(b, h):
    """i16 vector (bits of f16) -> f32 vector."""
    n = h.type.count
    f, i = ir.VectorType(_F32, n), ir.VectorType(_I32, n)
    if HAS_F16C:
        return b.fpext(b.bitcast(h, ir.VectorType(ir.HalfType(), n)), f)
    # Without the instruction: move exponent and mantissa up, multiply by 2^112 (exact, denormals too), patch inf/nan.
    w = b.zext(h, i)
    magnitude = b.shl(b.and_(w, _const(i, [0x7FFF] * n)), _const(i, [13] * n))
    sign = b.shl(b.and_(w, _const(i, [0x8000] * n)), _const(i, [16] * n))
    scaled = b.bitcast(b.fmul(b.bitcast(magnitude, f), ir.Constant(f, [2.0**112] * n)), i)
    special = b.icmp_signed(">=", magnitude, _const(i, [0x7C00 << 13] * n))
    scaled = b.select(special, b.or_(magnitude, _const(i, [0x7F800000] * n)), scaled)
    return b.bitcast(b.or_(scaled, sign), f)


@intrinsic
def f16_to_f32(tyctx, v):
    """u16 lanes (bits of f16) -> f32 lanes."""
    out = Vec("f32", v.n)
    return out(v), lambda ctx, b, sig, a: _f16_to_f32(b, a[0])


def _f32_to_f16(b, x):
    """f32 vector -> i16 vector (bits of f16)."""
    n = x.type.count
    out = ir.VectorType(_I16, n)
    if HAS_F16C:
        return b.bitcast(b.fptrunc(x, ir.VectorType(ir.HalfType(), n)), out)
    f, i = ir.VectorType(_F32, n), ir.VectorType(_I32, n)

    def c(x):
        return _const(i, [x] * n)

    w = b.bitcast(x, i)
    sign = b.and_(b.lshr(w, c(16)), c(0x8000))
    w = b.and_(w, c(0x7FFFFFFF))
    # Below 2^-14 the result is denormal: adding 0.5 lets the FPU round to multiples of 2^-24.
    tiny = b.sub(b.bitcast(b.fadd(b.bitcast(w, f), ir.Constant(f, [0.5] * n)), i), c(0x3F000000))
    odd = b.and_(b.lshr(w, c(13)), c(1))
    normal = b.lshr(b.add(b.add(w, c(0xC8000FFF - (1 << 32))), odd), c(13))
    is_nan = b.icmp_signed(">", w, c(0x7F800000))
    payload = b.or_(b.lshr(b.and_(w, c(0x7FFFFF)), c(13)), c(0x7E00))
    large = b.select(is_nan, payload, c(0x7C00))
    half = b.select(b.icmp_signed("<", w, c(0x38800000)), tiny, normal)
    half = b.select(b.icmp_signed(">=", w, c(0x47800000)), large, half)
    return b.trunc(b.or_(half, sign), out)


@intrinsic
def f32_to_f16(tyctx, v):
    """f32 lanes -> u16 lanes (bits of f16), to the nearest, halves to even."""
    return Vec("u16", v.n)(v), lambda ctx, b, sig, a: _f32_to_f16(b, a[0])


@intrinsic
def bf16_to_f32(tyctx, v):
    """u16 lanes (upper half of an f32) -> f32 lanes."""
    out = Vec("f32", v.n)

    def codegen(ctx, b, sig, a):
        i = ir.VectorType(_I32, v.n)
        return b.bitcast(b.shl(b.zext(a[0], i), _const(i, [16] * v.n)), out.ir)

    return out(v), codegen


@intrinsic
def f32_to_bf16(tyctx, v):
    """f32 lanes -> u16 lanes, to the nearest, halves to even; NaNs become quiet (ggml-impl.h: ggml_compute_fp32_to_bf16)."""
    out = Vec("u16", v.n)

    def codegen(ctx, b, sig, a):
        i = ir.VectorType(_I32, v.n)

        def c(x):
            return _const(i, [x] * v.n)

        w = b.bitcast(a[0], i)
        rounded = b.lshr(b.add(w, b.add(c(0x7FFF), b.and_(b.lshr(w, c(16)), c(1)))), c(16))
        nan = b.icmp_signed(">", b.and_(w, c(0x7FFFFFFF)), c(0x7F800000))
        return b.trunc(b.select(nan, b.or_(b.lshr(w, c(16)), c(64)), rounded), out.ir)

    return out(v), codegen


@intrinsic
def f16_at(tyctx, addr):
    """The f16 at `addr` as f32. Four are not read at once: only these two bytes are touched."""

    def codegen(ctx, b, sig, a):
        h = b.load(_ptr(b, a[0], _I16), align=1)
        v = b.insert_element(ir.Constant(ir.VectorType(_I16, 8), None), h, _I32(0))
        return b.extract_element(_f16_to_f32(b, v), _I32(0))

    return types.float32(types.uintp), codegen


def f16_gather(count, stride, lanes=None):
    """-> f(addr): `count` f16 that lie `stride` bytes apart, as f32 lanes; further lanes are zero.

    Gathered first and converted at once: a scalar conversion each costs twice the time.
    """
    n = lanes or count
    out = Vec("f32", n)

    @intrinsic
    def gather(tyctx, addr):
        def codegen(ctx, b, sig, a):
            x = ir.Constant(ir.VectorType(_I16, n), None)
            for i in range(count):
                at = b.add(a[0], ir.Constant(a[0].type, i * stride))
                x = b.insert_element(x, b.load(_ptr(b, at, _I16), align=1), _I32(i))
            return _f16_to_f32(b, x)

        return out(types.uintp), codegen

    return gather


# ---- elements that lie apart


def strided_loader(elem):
    """-> load(addr, stride, count): `count` <= 16 lanes that lie `stride` bytes apart; zero in the others."""
    vec = Vec(elem, 16)
    scalar = _SCALAR[elem]

    @intrinsic
    def load(tyctx, addr, stride, count):
        def codegen(ctx, b, sig, a):
            room = cgutils.alloca_once(b, vec.ir)
            b.store(ir.Constant(vec.ir, None), room)
            first = b.bitcast(room, scalar.as_pointer())
            with cgutils.for_range(b, a[2], intp=_I64) as loop:
                at = b.add(a[0], b.mul(loop.index, a[1]))
                b.store(b.load(_ptr(b, at, scalar), align=1), b.gep(first, [loop.index]))
            return b.load(room)

        return vec(types.uintp, types.int64, types.int64), codegen

    return load


@intrinsic
def store_strided(tyctx, addr, v, stride, count):
    """Write the lanes below `count`, `stride` bytes apart."""

    def codegen(ctx, b, sig, a):
        scalar = a[1].type.element
        room = cgutils.alloca_once(b, a[1].type)
        b.store(a[1], room)
        first = b.bitcast(room, scalar.as_pointer())
        with cgutils.for_range(b, a[3], intp=_I64) as loop:
            at = b.add(a[0], b.mul(loop.index, a[2]))
            b.store(b.load(b.gep(first, [loop.index])), _ptr(b, at, scalar), align=1)
        return ctx.get_dummy_value()

    return types.none(types.uintp, v, types.int64, types.int64), codegen


@intrinsic
def copy_bytes(tyctx, to, source, count):
    """memmove: the two may overlap."""

    def codegen(ctx, b, sig, a):
        p = _I8.as_pointer()
        fnty = ir.FunctionType(ir.VoidType(), [p, p, _I64, _I1])
        fn = cgutils.get_or_insert_function(b.module, fnty, "llvm.memmove.p0.p0.i64")
        b.call(fn, [b.inttoptr(a[0], p), b.inttoptr(a[1], p), a[2], _I1(0)])
        return ctx.get_dummy_value()

    return types.none(types.uintp, types.uintp, types.int64), codegen


@intrinsic
def put_f16(tyctx, addr, x):
    """Write x rounded to f16; every NaN becomes the quiet one of its sign, as scales of blocks want it."""

    def codegen(ctx, b, sig, a):
        h = _f32_to_f16(b, b.insert_element(ir.Constant(ir.VectorType(_F32, 8), None), a[1], _I32(0)))
        h = b.extract_element(h, _I32(0))
        nan = b.or_(b.and_(h, _I16(-0x8000)), _I16(0x7E00))
        b.store(b.select(b.fcmp_unordered("uno", a[1], a[1]), nan, h), _ptr(b, a[0], _I16), align=1)
        return ctx.get_dummy_value()

    return types.none(types.uintp, types.float32), codegen


# ---- lanes of other widths, signs, comparisons


@intrinsic
def widen(tyctx, v):
    """u8, i8, u16 or i16 lanes -> i32, of the same value."""
    out = Vec("i32", v.n)
    return out(v), lambda ctx, b, sig, a: (b.zext if v.elem[0] == "u" else b.sext)(a[0], out.ir)


@intrinsic
def low_u8(tyctx, v):
    """Low byte of each i32 lane."""
    out = Vec("u8", v.n)
    return out(v), lambda ctx, b, sig, a: b.trunc(a[0], out.ir)


@intrinsic
def copy_sign(tyctx, x, sign):
    """|x| with the sign of `sign` (f32), zeros and NaNs too."""

    def codegen(ctx, b, sig, a):
        bits = ir.VectorType(_I32, x.n)
        m, s = _const(bits, [0x7FFFFFFF] * x.n), _const(bits, [-0x80000000] * x.n)
        both = b.or_(b.and_(b.bitcast(a[0], bits), m), b.and_(b.bitcast(a[1], bits), s))
        return b.bitcast(both, a[0].type)

    return x(x, sign), codegen


@intrinsic
def negative(tyctx, x):
    """-x, zeros and NaNs too."""
    return x(x), lambda ctx, b, sig, a: b.fneg(a[0])


def _lane_bits(condition):
    """-> f(x, y): an i64, bit i = whether the condition holds for lane i."""

    @intrinsic
    def bits_of(tyctx, x, y):
        def codegen(ctx, b, sig, a):
            return b.zext(b.bitcast(condition(b, a[0], a[1]), ir.IntType(x.n)), _I64)

        return types.int64(x, y), codegen

    return bits_of


equal_bits = _lane_bits(lambda b, x, y: b.fcmp_ordered("==", x, y))
nan_bits = _lane_bits(lambda b, x, y: b.fcmp_unordered("uno", x, y))


@intrinsic
def lowest_bit(tyctx, x):
    """Number of the lowest bit that is set; 64 for 0."""
    return types.int64(types.int64), lambda ctx, b, sig, a: b.cttz(a[0], _I1(0))


@intrinsic
def highest_bit(tyctx, x):
    """Number of the highest bit that is set; -1 for 0."""
    return types.int64(types.int64), lambda ctx, b, sig, a: b.sub(_I64(63), b.ctlz(a[0], _I1(0)))


def f16_gather_pairs(count, stride):
    """-> f(addr): `count` (at most 8) pairs of neighbouring f16 that lie `stride` bytes apart, as f32 lanes: the first
    of each pair in lanes 0, 2, 4 ..., further lanes zero."""
    out = Vec("f32", 16)

    @intrinsic
    def gather(tyctx, addr):
        def codegen(ctx, b, sig, a):
            x = ir.Constant(ir.VectorType(_I32, 8), None)
            for i in range(count):
                at = b.add(a[0], ir.Constant(a[0].type, i * stride))
                x = b.insert_element(x, b.load(_ptr(b, at, _I32), align=1), _I32(i))
            return _f16_to_f32(b, b.bitcast(x, ir.VectorType(_I16, 16)))

        return out(types.uintp), codegen

    return gather


# ---- integer dot product: sums of four adjacent products, exact, lane by lane


def _madd(b, acc, u, s, bits, maddubs, maddwd):
    """u8 x i8 through 16-bit pair sums, which must not overflow: u at most 127, or the products small."""
    i16, i32 = ir.VectorType(_I16, bits // 16), ir.VectorType(_I32, bits // 32)
    pairs = _call(b, maddubs, i16, [u, s])
    return b.add(acc, _call(b, maddwd, i32, [pairs, _const(i16, [1] * (bits // 16))]))


def _dot_generic(b, acc, u, s, unsigned):
    i32 = ir.VectorType(_I32, u.type.count // 4)
    for k in range(4):
        every = range(k, u.type.count, 4)
        x = _shuffle(b, u, None, every)
        x = b.zext(x, i32) if unsigned else b.sext(x, i32)
        acc = b.add(acc, b.mul(x, b.sext(_shuffle(b, s, None, every), i32)))
    return acc


def _dot(b, acc, u, s):
    if LEVEL == "vnni":
        return _call(b, "llvm.x86.avx512.vpdpbusd.512", acc.type, [acc, u, s])
    if LEVEL == "v4":
        return _madd(b, acc, u, s, 512, "llvm.x86.avx512.pmaddubs.w.512", "llvm.x86.avx512.pmaddw.d.512")
    if LEVEL == "v3":
        f = lambda x, y, z: _madd(b, x, y, z, 256, "llvm.x86.avx2.pmadd.ub.sw", "llvm.x86.avx2.pmadd.wd")  # noqa: E731
        return _in_parts(b, 2, f, acc, u, s)
    if LEVEL == "v2":
        f = lambda x, y, z: _madd(b, x, y, z, 128, "llvm.x86.ssse3.pmadd.ub.sw.128", "llvm.x86.sse2.pmadd.wd")  # noqa: E731
        return _in_parts(b, 4, f, acc, u, s)
    return _dot_generic(b, acc, u, s, unsigned=True)


def _dot_signed(b, acc, w, s):
    if HAS_VNNI:
        return _dot(b, acc, w, s)
    if LEVEL == "generic":
        return _dot_generic(b, acc, w, s, unsigned=False)
    zero = ir.Constant(w.type, None)  # |w| <= 128 times s with w's sign: two such products fit 16 bits
    negative = b.icmp_signed("<", w, zero)
    return _dot(b, acc, b.select(negative, b.sub(zero, w), w), b.select(negative, b.sub(zero, s), s))


@intrinsic
def dot_u8i8(tyctx, acc, u, s):
    """acc (i32 x 16) + sums of 4 adjacent u8 x i8 products of 64. Lanes of u are at most 63 below VNNI."""
    return acc(acc, u, s), lambda ctx, b, sig, a: _dot(b, *a)


SIGNED_BIAS = 128 if HAS_VNNI else 0
"""What `signed_weights` adds to each weight; the caller takes bias x (sum of the four activations) away again."""


@intrinsic
def signed_weights(tyctx, w):
    """i8 weights in the form in which `dot_weights` wants them: shifted to u8 with VNNI, as they are elsewhere."""
    out = Vec("u8", w.n)

    def codegen(ctx, b, sig, a):
        return b.xor(a[0], _const(a[0].type, [0x80] * w.n)) if HAS_VNNI else a[0]

    return out(w), codegen


@intrinsic
def dot_weights(tyctx, acc, w, s):
    """acc + sums of 4 adjacent products of `signed_weights` and i8 activations (-127 to 127)."""

    return acc(acc, w, s), lambda ctx, b, sig, a: _dot_signed(b, *a)


# ---- exponential


@device
def exp(x):
    """e^x of f32 lanes, within 2 ulp; below -104 it is 0, above 88.7 infinity, NaN stays NaN.

    x = n ln2 + r with |r| <= ln2/2; e^r by its Taylor polynomial to the 6th power; 2^n in two halves, so that results
    among the denormals round once.
    """
    big = maximum(minimum(x, splat_f32(np.float32(89.0))), splat_f32(np.float32(-105.0)))
    n = round_even(big * splat_f32(np.float32(1.4426950408889634)))
    r = fma(n, splat_f32(np.float32(-0.693359375)), big)
    r = fma(n, splat_f32(np.float32(2.12194440e-4)), r)
    p = splat_f32(np.float32(1.0 / 720.0))
    p = fma(p, r, splat_f32(np.float32(1.0 / 120.0)))
    p = fma(p, r, splat_f32(np.float32(1.0 / 24.0)))
    p = fma(p, r, splat_f32(np.float32(1.0 / 6.0)))
    p = fma(p, r, splat_f32(np.float32(0.5)))
    p = fma(p, r, splat_f32(np.float32(1.0)))
    p = fma(p, r, splat_f32(np.float32(1.0)))
    whole = truncate_to_i32(n)
    low = whole >> splat_i32(np.int32(1))
    high = whole - low
    bias, shift = splat_i32(np.int32(127)), splat_i32(np.int32(23))
    y = p * bits_f32((low + bias) << shift) * bits_f32((high + bias) << shift)
    return where_nan(x, y)


@intrinsic
def where_nan(tyctx, x, y):
    """x where it is NaN, else y."""
    return x(x, y), lambda ctx, b, sig, a: b.select(b.fcmp_unordered("uno", a[0], a[0]), a[0], a[1])


# ---- threads


@intrinsic
def atomic_add(tyctx, addr, value):
    """The i64 before `value` was added."""
    return types.int64(types.uintp, types.int64), lambda ctx, b, sig, a: b.atomic_rmw(
        "add", _ptr(b, a[0], _I64), a[1], "seq_cst"
    )


@intrinsic
def atomic_load(tyctx, addr):
    return types.int64(types.uintp), lambda ctx, b, sig, a: b.load_atomic(_ptr(b, a[0], _I64), "acquire", 8)


@intrinsic
def atomic_store(tyctx, addr, value):
    def codegen(ctx, b, sig, a):
        b.store_atomic(a[1], _ptr(b, a[0], _I64), "release", 8)
        return ctx.get_dummy_value()

    return types.none(types.uintp, types.int64), codegen


def _void_call(name):
    """-> f(): a function of the C library, or an LLVM intrinsic, that is called for what it does."""

    @intrinsic
    def call(tyctx):
        def codegen(ctx, b, sig, a):
            _call(b, name, ir.VoidType(), [])
            return ctx.get_dummy_value()

        return types.none(), codegen

    return call


def _pointer_call(name):
    """-> f(addr): a function of the C library that takes a pointer and returns an int of no interest."""

    @intrinsic
    def call(tyctx, addr):
        def codegen(ctx, b, sig, a):
            _call(b, name, _I32, [_ptr(b, a[0], _I8)])
            return ctx.get_dummy_value()

        return types.none(types.uintp), codegen

    return call


pause = _void_call("llvm.donothing" if LEVEL == "generic" else "llvm.x86.sse2.pause")
sched_yield = _void_call("sched_yield")
sem_wait, sem_post = _pointer_call("sem_wait"), _pointer_call("sem_post")


@intrinsic
def call_kernel(tyctx, address, step, ith, nth):
    def codegen(ctx, b, sig, a):
        fn = b.inttoptr(a[0], ir.FunctionType(ir.VoidType(), [_I64, _I64, _I64]).as_pointer())
        b.call(fn, a[1:])
        return ctx.get_dummy_value()

    return types.none(types.uintp, types.uintp, types.int64, types.int64), codegen


def reader(at, kind):
    """-> f(addr): the scalar `at` bytes further: "i32", "f32", "f64", "i64" or an address, "u64"."""
    llvm_type, numba_type = {
        "i32": (_I32, types.int32),
        "f32": (_F32, types.float32),
        "f64": (ir.DoubleType(), types.float64),
        "i64": (_I64, types.int64),
        "u64": (_I64, types.uintp),
    }[kind]

    @intrinsic
    def read(tyctx, addr):
        def codegen(ctx, b, sig, a):
            return b.load(_ptr(b, b.add(a[0], ir.Constant(a[0].type, at)), llvm_type), align=4)

        return numba_type(types.uintp), codegen

    return read


assert LEVEL in LEVELS


# ---- pieces of blocks


def nibbles(offsets):
    """-> f(addr): for one or two blocks, whose 16 bytes of nibbles lie at `offsets`: u8 x 64, in each half of 32 first
    the low nibbles, then the high ones. With one block the upper half is zero."""
    out = Vec("u8", 64)
    order = [*range(16), *range(16)]

    @intrinsic
    def unpack(tyctx, addr):
        def codegen(ctx, b, sig, a):
            v16, words = ir.VectorType(_I8, 16), ir.VectorType(_I32, 16)
            x = [b.load(_ptr(b, b.add(a[0], ir.Constant(a[0].type, o)), v16), align=1) for o in offsets]
            if len(x) == 1:
                x.append(ir.Constant(v16, None))
            twice = b.bitcast(_shuffle(b, x[0], x[1], order + [16 + i for i in order]), words)
            shifted = b.lshr(twice, _const(words, ([0] * 4 + [4] * 4) * 2))
            return b.bitcast(b.and_(shifted, _const(words, [0x0F0F0F0F] * 16)), out.ir)

        return out(types.uintp), codegen

    return unpack


def bits(offsets, value):
    """-> f(addr): for one or two words of 32 bits at `offsets`: u8 x 64, `value` where the bit is set, else 0."""
    out = Vec("u8", 64)

    @intrinsic
    def unpack(tyctx, addr):
        def codegen(ctx, b, sig, a):
            word = ir.Constant(_I64, 0)
            for i, o in enumerate(offsets):
                w = b.zext(b.load(_ptr(b, b.add(a[0], ir.Constant(a[0].type, o)), _I32), align=1), _I64)
                word = b.or_(word, b.shl(w, ir.Constant(_I64, 32 * i)))
            mask = b.bitcast(word, ir.VectorType(_I1, 64))
            return b.select(mask, _const(out.ir, [value] * 64), ir.Constant(out.ir, None))

        return out(types.uintp), codegen

    return unpack


def bytes_at(offsets):
    """-> f(addr): for one or two runs of 32 bytes at `offsets`: i8 x 64. With one the upper half is zero."""
    out = Vec("i8", 64)

    @intrinsic
    def unpack(tyctx, addr):
        def codegen(ctx, b, sig, a):
            v32 = ir.VectorType(_I8, 32)
            x = [b.load(_ptr(b, b.add(a[0], ir.Constant(a[0].type, o)), v32), align=1) for o in offsets]
            if len(x) == 1:
                x.append(ir.Constant(v32, None))
            return _join(b, x)

        return out(types.uintp), codegen

    return unpack


@intrinsic
def f16_column(tyctx, addr, stride, last):
    """The f16 at the start of 16 rows, `stride` bytes apart, as f32 lanes; lanes beyond row `last` repeat that row."""
    out = Vec("f32", 16)

    def codegen(ctx, b, sig, a):
        at, stride, last = a
        x = ir.Constant(ir.VectorType(_I16, 16), None)
        for i in range(16):
            x = b.insert_element(x, b.load(_ptr(b, at, _I16), align=1), _I32(i))
            more = b.icmp_signed("<", ir.Constant(_I64, i), last)
            at = b.add(at, b.select(more, stride, ir.Constant(_I64, 0)))
        return _f16_to_f32(b, x)

    return out(types.uintp, types.uintp, types.int64), codegen


def _transpose(b, rows):
    """16 vectors of 16 32-bit lanes -> their columns: pairs of lanes, pairs of pairs, then 128-bit pieces."""
    lo = [i + 4 * j + k for j in range(4) for i in (0, 1) for k in (0, 16)]
    hi = [i + 4 * j + k for j in range(4) for i in (2, 3) for k in (0, 16)]
    r = rows
    s = []
    for i in range(0, 16, 2):
        s += [_shuffle(b, r[i], r[i + 1], lo), _shuffle(b, r[i], r[i + 1], hi)]
    lo = [4 * j + i + k for j in range(4) for k in (0, 16) for i in (0, 1)]
    hi = [4 * j + i + k for j in range(4) for k in (0, 16) for i in (2, 3)]
    t = [None] * 16  # t[4 g + c]: rows 4g to 4g+3, column c of each 128-bit piece
    for g in range(4):
        a0, a1, b0, b1 = s[4 * g], s[4 * g + 1], s[4 * g + 2], s[4 * g + 3]
        t[4 * g] = _shuffle(b, a0, b0, lo)
        t[4 * g + 1] = _shuffle(b, a0, b0, hi)
        t[4 * g + 2] = _shuffle(b, a1, b1, lo)
        t[4 * g + 3] = _shuffle(b, a1, b1, hi)
    out = [None] * 16
    even = [*range(4), *range(8, 12), *range(16, 20), *range(24, 28)]
    odd = [i + 4 for i in even]
    for c in range(4):
        x0, x1 = _shuffle(b, t[c], t[4 + c], even), _shuffle(b, t[c], t[4 + c], odd)
        y0, y1 = _shuffle(b, t[8 + c], t[12 + c], even), _shuffle(b, t[8 + c], t[12 + c], odd)
        out[c], out[8 + c] = _shuffle(b, x0, y0, even), _shuffle(b, x0, y0, odd)
        out[4 + c], out[12 + c] = _shuffle(b, x1, y1, even), _shuffle(b, x1, y1, odd)
    return out


def transposer(unpack, keep=16):
    """-> f(dst, src, stride, last): unpack(src + i * stride) for rows i = 0 to 15 (row `last` for those beyond it),
    taken as 16 lanes of 32 bits each; lane j of all rows is stored at dst + 64 j, for j < `keep`."""

    @intrinsic
    def store16(tyctx, dst, r0, r1, r2, r3, r4, r5, r6, r7, r8, r9, r10, r11, r12, r13, r14, r15):
        def codegen(ctx, b, sig, a):
            words = ir.VectorType(_I32, 16)
            for j, column in enumerate(_transpose(b, [b.bitcast(x, words) for x in a[1:]])[:keep]):
                at = b.add(a[0], ir.Constant(a[0].type, 64 * j))
                b.store(column, _ptr(b, at, words), align=1)
            return ctx.get_dummy_value()

        return types.none(types.uintp, *[r0] * 16), codegen

    @device
    def transpose(dst, src, stride, last):
        # row addresses: at most `last` strides from the first, so that nothing is read behind the last row
        s0 = src
        s1 = src + stride * U(min(1, last))
        s2 = src + stride * U(min(2, last))
        s3 = src + stride * U(min(3, last))
        s4 = src + stride * U(min(4, last))
        s5 = src + stride * U(min(5, last))
        s6 = src + stride * U(min(6, last))
        s7 = src + stride * U(min(7, last))
        s8 = src + stride * U(min(8, last))
        s9 = src + stride * U(min(9, last))
        s10 = src + stride * U(min(10, last))
        s11 = src + stride * U(min(11, last))
        s12 = src + stride * U(min(12, last))
        s13 = src + stride * U(min(13, last))
        s14 = src + stride * U(min(14, last))
        s15 = src + stride * U(min(15, last))
        store16(
            dst, unpack(s0), unpack(s1), unpack(s2), unpack(s3), unpack(s4), unpack(s5), unpack(s6), unpack(s7),
            unpack(s8), unpack(s9), unpack(s10), unpack(s11), unpack(s12), unpack(s13), unpack(s14), unpack(s15),
        )  # fmt: skip

    return transpose


# ---- register tiles: `count` registers handled as one value


class Tile(types.Type):
    """`count` vectors of 16 lanes; one for each column of a tile of 16 rows."""

    def __init__(self, elem, count):
        self.elem, self.count = elem, count
        super().__init__(name=f"tile<{elem}x16x{count}>")

    @property
    def ir(self):
        return ir.ArrayType(ir.VectorType(_SCALAR[self.elem], 16), self.count)


@register_model(Tile)
class _TileModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, fe_type.ir)


def _columns(b, value, count):
    return [b.extract_value(value, i) for i in range(count)]


def _tile(b, vectors):
    value = ir.Constant(ir.ArrayType(vectors[0].type, len(vectors)), ir.Undefined)
    for i, v in enumerate(vectors):
        value = b.insert_value(value, v, i)
    return value


def _splat_from(b, base, at, scalar, n=16):
    p = _ptr(b, b.add(base, ir.Constant(base.type, at)), scalar)
    return _splat(b, b.load(p, align=1), n)


class TileWords:
    """The words for tiles of `count` columns. Column t's scalars lie at y + 4 t."""

    def __init__(self, count):
        i32, f32 = Tile("i32", count), Tile("f32", count)
        f32v = ir.VectorType(_F32, 16)

        @intrinsic
        def zero(tyctx):
            return f32(), lambda ctx, b, sig, a: ir.Constant(f32.ir, None)

        @intrinsic
        def start(tyctx, y, shift):
            """i32 columns that begin at (i32 at y + 4 t) << shift."""

            def codegen(ctx, b, sig, a):
                by = _splat(b, b.trunc(a[1], _I32), 16)
                return _tile(b, [b.shl(_splat_from(b, a[0], 4 * t, _I32), by) for t in range(count)])

            return i32(types.uintp, types.int64), codegen

        @intrinsic
        def start_zero(tyctx):
            return i32(), lambda ctx, b, sig, a: ir.Constant(i32.ir, None)

        def dot_with(dot):
            @intrinsic
            def step(tyctx, acc, w, y):
                """acc + 4 products a lane: 16 rows x 4 weights `w` with the 4 activations of each column at y."""

                def codegen(ctx, b, sig, a):
                    v64 = ir.VectorType(_I8, 64)
                    s = [b.bitcast(_splat_from(b, a[2], 4 * t, _I32), v64) for t in range(count)]
                    return _tile(b, [dot(b, acc, a[1], x) for acc, x in zip(_columns(b, a[0], count), s, strict=True)])

                return acc(acc, w, types.uintp), codegen

            return step

        @intrinsic
        def scale_add(tyctx, acc, sums, d, y):
            """acc + f32(sums) * (d * scale of each column at y)."""

            def codegen(ctx, b, sig, a):
                out = []
                for t, (x, n) in enumerate(zip(_columns(b, a[0], count), _columns(b, a[1], count), strict=True)):
                    out.append(_fma(b, b.sitofp(n, f32v), b.fmul(a[2], _splat_from(b, a[3], 4 * t, _F32)), x))
                return _tile(b, out)

            return acc(acc, sums, d, types.uintp), codegen

        @intrinsic
        def fma_columns(tyctx, acc, w, y):
            """acc + w * (f32 of each column at y)."""

            def codegen(ctx, b, sig, a):
                return _tile(
                    b,
                    [
                        _fma(b, a[1], _splat_from(b, a[2], 4 * t, _F32), x)
                        for t, x in enumerate(_columns(b, a[0], count))
                    ],
                )

            return acc(acc, w, types.uintp), codegen

        @intrinsic
        def load_scaled(tyctx, addr, stride, y):
            """Column t: 16 f32 at addr + t * stride, times the f32 at y + 4 t."""

            def codegen(ctx, b, sig, a):
                out, at = [], a[0]
                for t in range(count):
                    x = b.load(_ptr(b, at, f32v), align=1)
                    out.append(b.fmul(x, _splat_from(b, a[2], 4 * t, _F32)))
                    at = b.add(at, a[1])
                return _tile(b, out)

            return f32(types.uintp, types.uintp, types.uintp), codegen

        @intrinsic
        def store_columns(tyctx, acc, addr, stride, rows, columns):
            """Write lanes below `rows` of the columns below `columns`, column t at addr + t * stride."""

            def codegen(ctx, b, sig, a):
                acc, addr, stride, rows, columns = a
                mask = _mask(b, rows, 16)
                p = f32v.as_pointer()
                fnty = ir.FunctionType(ir.VoidType(), [f32v, p, _I32, mask.type])
                fn = cgutils.get_or_insert_function(b.module, fnty, "llvm.masked.store.v16f32.p0")
                for t, x in enumerate(_columns(b, acc, count)):
                    with b.if_then(b.icmp_signed("<", ir.Constant(_I64, t), columns)):
                        b.call(fn, [x, b.inttoptr(addr, p), _I32(1), mask])
                    addr = b.add(addr, stride)
                return ctx.get_dummy_value()

            return types.none(acc, types.uintp, types.uintp, types.int64, types.int64), codegen

        self.zero, self.start, self.start_zero = zero, start, start_zero
        self.dot_u8i8 = dot_with(_dot)
        self.dot_weights = dot_with(_dot_signed)
        self.scale_add, self.fma_columns = scale_add, fma_columns
        self.load_scaled, self.store_columns = load_scaled, store_columns


def scatter_i32(count, stride):
    """-> f(addr, v): word i (32 bits) of the register at addr + i * stride, for i < count."""

    @intrinsic
    def scatter(tyctx, addr, v):
        def codegen(ctx, b, sig, a):
            words = b.bitcast(a[1], ir.VectorType(_I32, count))
            for i in range(count):
                at = b.add(a[0], ir.Constant(a[0].type, i * stride))
                b.store(b.extract_element(words, _I32(i)), _ptr(b, at, _I32), align=1)
            return ctx.get_dummy_value()

        return types.none(types.uintp, v), codegen

    return scatter


FLOAT_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


def _load_floats(b, addr, kind, n=16, count=None):
    """n elements of a float type at `addr` as f32 lanes; lanes from `count` on are zero and not read."""
    scalar = _F32 if kind == "F32" else _I16
    vty = ir.VectorType(scalar, n)
    p = _ptr(b, addr, vty)
    if count is None:
        raw = b.load(p, align=1)
    else:
        mask = _mask(b, count, n)
        fnty = ir.FunctionType(vty, [p.type, _I32, mask.type, vty])
        fn = cgutils.get_or_insert_function(b.module, fnty, f"llvm.masked.load.{_suffix(vty)}.p0")
        raw = b.call(fn, [p, _I32(1), mask, ir.Constant(vty, None)])
    if kind == "F32":
        return raw
    if kind == "F16":
        return _f16_to_f32(b, raw)
    i = ir.VectorType(_I32, n)
    return b.bitcast(b.shl(b.zext(raw, i), _const(i, [16] * n)), ir.VectorType(_F32, n))


def float_loader(kind):
    """-> (load(addr), load_part(addr, count)): 16 elements of "F32", "F16" or "BF16" as f32 lanes."""
    vec = Vec("f32", 16)

    @intrinsic
    def load(tyctx, addr):
        return vec(types.uintp), lambda ctx, b, sig, a: _load_floats(b, a[0], kind)

    @intrinsic
    def load_part(tyctx, addr, count):
        return vec(types.uintp, types.int64), lambda ctx, b, sig, a: _load_floats(b, a[0], kind, 16, a[1])

    return load, load_part


class RowWords:
    """The words for 16 rows of floats at once (`kind`), and for one row times a number."""

    def __init__(self, kind):
        rows = Tile("f32", 16)
        vec = Vec("f32", 16)

        def accumulate(b, a, count):
            acc, addr, stride, last, x = a[:5]
            out = []
            for j, old in enumerate(_columns(b, acc, 16)):
                out.append(_fma(b, _load_floats(b, addr, kind, 16, count), x, old))
                more = b.icmp_signed("<", ir.Constant(_I64, j), last)
                addr = b.add(addr, b.select(more, stride, ir.Constant(_I64, 0)))
            return _tile(b, out)

        @intrinsic
        def multiply(tyctx, acc, addr, stride, last, x):
            """Column j: acc + (16 elements of row j) * x; rows beyond `last` repeat it."""
            return acc(acc, types.uintp, types.uintp, types.int64, x), lambda ctx, b, sig, a: accumulate(b, a, None)

        @intrinsic
        def multiply_part(tyctx, acc, addr, stride, last, x, count):
            """The same for `count` elements of each row."""
            sig = acc(acc, types.uintp, types.uintp, types.int64, x, types.int64)
            return sig, lambda ctx, b, sig, a: accumulate(b, a, a[5])

        @intrinsic
        def zero(tyctx):
            return rows(), lambda ctx, b, sig, a: ir.Constant(rows.ir, None)

        @intrinsic
        def sums(tyctx, acc):
            """Lane j: the sum over column j's lanes, in a fixed tree."""

            def codegen(ctx, b, sig, a):
                level = _transpose(b, _columns(b, a[0], 16))
                while len(level) > 1:
                    level = [b.fadd(level[i], level[i + 1]) for i in range(0, len(level), 2)]
                return level[0]

            return vec(acc), codegen

        four = Tile("f32", 4)

        @intrinsic
        def add_row(tyctx, acc, addr, p):
            """acc (64 elements) + row * p."""

            def codegen(ctx, b, sig, a):
                by = _splat(b, a[2], 16)
                out = []
                for c, old in enumerate(_columns(b, a[0], 4)):
                    at = b.add(a[1], ir.Constant(a[1].type, 16 * FLOAT_BYTES[kind] * c))
                    out.append(_fma(b, _load_floats(b, at, kind), by, old))
                return _tile(b, out)

            return acc(acc, types.uintp, types.float32), codegen

        @intrinsic
        def zero4(tyctx):
            return four(), lambda ctx, b, sig, a: ir.Constant(four.ir, None)

        @intrinsic
        def store4(tyctx, addr, x, y):
            """Write the 64 elements of x + y."""

            def codegen(ctx, b, sig, a):
                for c, (p, q) in enumerate(zip(_columns(b, a[1], 4), _columns(b, a[2], 4), strict=True)):
                    at = b.add(a[0], ir.Constant(a[0].type, 64 * c))
                    b.store(b.fadd(p, q), _ptr(b, at, p.type), align=1)
                return ctx.get_dummy_value()

            return types.none(types.uintp, x, y), codegen

        self.multiply, self.multiply_part, self.zero, self.sums = multiply, multiply_part, zero, sums
        self.add_row, self.zero4, self.store4 = add_row, zero4, store4


@intrinsic
def select_part(tyctx, v, other, count):
    """Lanes below `count` of v, the number `other` in the rest."""

    def codegen(ctx, b, sig, a):
        return b.select(_mask(b, a[2], v.n), a[0], _splat(b, a[1], v.n))

    return v(v, types.float32, types.int64), codegen


@device
def exp2(x):
    """2^x of f32 lanes; exact for whole x."""
    whole = round_even(maximum(minimum(x, splat_f32(np.float32(129.0))), splat_f32(np.float32(-151.0))))
    return exp((x - whole) * splat_f32(np.float32(0.6931471805599453))) * _power_of_two(whole)


@device
def _power_of_two(n):
    """2^n for whole lanes from -151 to 129, in two factors."""
    whole = truncate_to_i32(n)
    low = whole >> splat_i32(np.int32(1))
    bias, shift = splat_i32(np.int32(127)), splat_i32(np.int32(23))
    return bits_f32((low + bias) << shift) * bits_f32((whole - low + bias) << shift)


@device
def tanh(x):
    """tanh of f32 lanes, within about 4 ulp: its series near 0, (1 - e^-2|x|) / (1 + e^-2|x|) elsewhere."""
    one = splat_f32(np.float32(1.0))
    size = absolute(x)
    t = exp(size * splat_f32(np.float32(-2.0)))
    far = (one - t) / (one + t)
    s = x * x
    p = splat_f32(np.float32(-1382.0 / 155925.0))
    p = fma(p, s, splat_f32(np.float32(62.0 / 2835.0)))
    p = fma(p, s, splat_f32(np.float32(-17.0 / 315.0)))
    p = fma(p, s, splat_f32(np.float32(2.0 / 15.0)))
    p = fma(p, s, splat_f32(np.float32(-1.0 / 3.0)))
    near = fma(p * s, size, size)
    y = where_less(size, splat_f32(np.float32(0.3)), near, far)
    return where_nan(x, where_less(x, splat_f32(np.float32(0.0)), y * splat_f32(np.float32(-1.0)), y))
