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


@intrinsic
def f32_to_f16(tyctx, v):
    """f32 lanes -> u16 lanes (bits of f16), to the nearest, halves to even."""
    out = Vec("u16", v.n)

    def codegen(ctx, b, sig, a):
        n = v.n
        if HAS_F16C:
            return b.bitcast(b.fptrunc(a[0], ir.VectorType(ir.HalfType(), n)), out.ir)
        f, i = ir.VectorType(_F32, n), ir.VectorType(_I32, n)

        def c(x):
            return _const(i, [x] * n)

        w = b.bitcast(a[0], i)
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
        return b.trunc(b.or_(half, sign), out.ir)

    return out(v), codegen


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


# ---- integer dot product: sums of four adjacent products, exact, lane by lane


def _madd(b, acc, u, s, bits, maddubs, maddwd):
    """u8 x i8 through 16-bit pair sums, which must not overflow: u at most 127, or the products small."""
    i16, i32 = ir.VectorType(_I16, bits // 16), ir.VectorType(_I32, bits // 32)
    pairs = _call(b, maddubs, i16, [u, s])
    return b.add(acc, _call(b, maddwd, i32, [pairs, _const(i16, [1] * (bits // 16))]))


def _dot_generic(b, acc, u, s, unsigned):
    i16, i32 = ir.VectorType(_I16, u.type.count), ir.VectorType(_I32, u.type.count)
    wide = b.zext(u, i16) if unsigned else b.sext(u, i16)
    product = b.mul(b.sext(wide, i32), b.sext(s, i32))
    n = u.type.count
    for k in range(4):
        acc = b.add(acc, _shuffle(b, product, None, range(k, n, 4)))
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

    def codegen(ctx, b, sig, a):
        acc, w, s = a
        if HAS_VNNI:
            return _dot(b, acc, w, s)
        if LEVEL == "generic":
            return _dot_generic(b, acc, w, s, unsigned=False)
        zero = ir.Constant(w.type, None)  # |w| <= 128 times s with w's sign: two such products fit 16 bits
        negative = b.icmp_signed("<", w, zero)
        return _dot(b, acc, b.select(negative, b.sub(zero, w), w), b.select(negative, b.sub(zero, s), s))

    return acc(acc, w, s), codegen


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
    """-> f(addr): the scalar `at` bytes further: "i32", "f32", "i64" or an address, "u64"."""
    llvm_type, numba_type = {
        "i32": (_I32, types.int32),
        "f32": (_F32, types.float32),
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
