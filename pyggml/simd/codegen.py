"""Building blocks of code generation: what the primitives of this package emit LLVM instructions with.

Owns the level's switches and functions from builder and values to values; knows no Numba type and no primitive.
"""

import numpy as np
from llvmlite import ir
from numba.core import cgutils

from pyggml.jit import level

LEVEL = level()
HAS_FMA = LEVEL in ("v3", "v4", "vnni")
HAS_F16C = HAS_FMA
HAS_VNNI = LEVEL == "vnni"
U = np.uintp
I1, I8, I16, I32, I64 = (ir.IntType(n) for n in (1, 8, 16, 32, 64))
F32 = ir.FloatType()
SCALAR = {"u8": I8, "i8": I8, "u16": I16, "i16": I16, "i32": I32, "u32": I32, "f32": F32}


def call(b, name, ret, args):
    """Call a function by name, an LLVM intrinsic or one of the C library, which is declared as its arguments have
    it."""
    fnty = ir.FunctionType(ret, [a.type for a in args])
    return b.call(cgutils.get_or_insert_function(b.module, fnty, name), args)


def shuffle(b, x, y, index):
    """Lanes of x followed by y (None: of x alone), by number."""
    y = ir.Constant(x.type, ir.Undefined) if y is None else y
    return b.shuffle_vector(x, y, ir.Constant(ir.VectorType(I32, len(index)), list(index)))


def splat(b, value, n):
    """n lanes of one value."""
    vty = ir.VectorType(value.type, n)
    return shuffle(b, b.insert_element(ir.Constant(vty, ir.Undefined), value, I32(0)), None, [0] * n)


def const(vty, values):
    """A constant vector of these values."""
    return ir.Constant(vty, list(values))


def ptr(b, addr, ty):
    """An address (an integer) as a pointer to `ty`."""
    return b.inttoptr(addr, ty.as_pointer())


def part(b, v, count, index):
    """Cut a vector in `count` equal pieces and return piece `index`."""
    n = v.type.count // count
    return shuffle(b, v, None, range(index * n, (index + 1) * n))


def join(b, parts):
    """Vectors of equal types, a power of two of them, as one."""
    while len(parts) > 1:
        n = parts[0].type.count * 2
        parts = [shuffle(b, parts[i], parts[i + 1], range(n)) for i in range(0, len(parts), 2)]
    return parts[0]


def in_parts(b, count, function, *vectors):
    """Apply an instruction of a narrower width to each piece of the vectors."""
    if count == 1:
        return function(*vectors)
    return join(b, [function(*(part(b, v, count, i) for v in vectors)) for i in range(count)])


def mask(b, count, n):
    """i1 x n: lane < count (an i64)."""
    lanes = const(ir.VectorType(I32, n), range(n))
    return b.icmp_signed("<", lanes, splat(b, b.trunc(count, I32), n))


def suffix(vty):
    """How an intrinsic is called that takes this vector: v16f32."""
    return f"v{vty.count}{'f32' if vty.element == F32 else 'i' + str(vty.element.width)}"


def fma(b, x, y, z):
    """x * y + z, rounded once where the level can."""
    if not HAS_FMA:  # llvm.fma would be a library call
        return b.fadd(b.fmul(x, y), z)
    return call(b, f"llvm.fma.{suffix(x.type)}", x.type, [x, y, z])


def tree(b, v, combine):
    """All lanes combined, halves with halves, so that the order of additions is fixed."""
    while v.type.count > 1:
        half = v.type.count // 2
        v = combine(shuffle(b, v, None, range(half)), shuffle(b, v, None, range(half, 2 * half)))
    return b.extract_element(v, I32(0))


def f16_to_f32(b, h):
    """i16 vector (bits of f16) -> f32 vector."""
    n = h.type.count
    f, i = ir.VectorType(F32, n), ir.VectorType(I32, n)
    if HAS_F16C:
        return b.fpext(b.bitcast(h, ir.VectorType(ir.HalfType(), n)), f)
    # Without the instruction: move exponent and mantissa up, multiply by 2^112 (exact, denormals too), patch inf/nan.
    w = b.zext(h, i)
    magnitude = b.shl(b.and_(w, const(i, [0x7FFF] * n)), const(i, [13] * n))
    sign = b.shl(b.and_(w, const(i, [0x8000] * n)), const(i, [16] * n))
    scaled = b.bitcast(b.fmul(b.bitcast(magnitude, f), ir.Constant(f, [2.0**112] * n)), i)
    special = b.icmp_signed(">=", magnitude, const(i, [0x7C00 << 13] * n))
    scaled = b.select(special, b.or_(magnitude, const(i, [0x7F800000] * n)), scaled)
    return b.bitcast(b.or_(scaled, sign), f)


def f32_to_f16(b, x):
    """f32 vector -> i16 vector (bits of f16)."""
    n = x.type.count
    out = ir.VectorType(I16, n)
    if HAS_F16C:
        return b.bitcast(b.fptrunc(x, ir.VectorType(ir.HalfType(), n)), out)
    f, i = ir.VectorType(F32, n), ir.VectorType(I32, n)

    def c(x):
        return const(i, [x] * n)

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


def transpose(b, rows):
    """16 vectors of 16 32-bit lanes -> their columns: pairs of lanes, pairs of pairs, then 128-bit pieces."""
    lo = [i + 4 * j + k for j in range(4) for i in (0, 1) for k in (0, 16)]
    hi = [i + 4 * j + k for j in range(4) for i in (2, 3) for k in (0, 16)]
    r = rows
    s = []
    for i in range(0, 16, 2):
        s += [shuffle(b, r[i], r[i + 1], lo), shuffle(b, r[i], r[i + 1], hi)]
    lo = [4 * j + i + k for j in range(4) for k in (0, 16) for i in (0, 1)]
    hi = [4 * j + i + k for j in range(4) for k in (0, 16) for i in (2, 3)]
    t = [None] * 16  # t[4 g + c]: rows 4g to 4g+3, column c of each 128-bit piece
    for g in range(4):
        a0, a1, b0, b1 = s[4 * g], s[4 * g + 1], s[4 * g + 2], s[4 * g + 3]
        t[4 * g] = shuffle(b, a0, b0, lo)
        t[4 * g + 1] = shuffle(b, a0, b0, hi)
        t[4 * g + 2] = shuffle(b, a1, b1, lo)
        t[4 * g + 3] = shuffle(b, a1, b1, hi)
    out = [None] * 16
    even = [*range(4), *range(8, 12), *range(16, 20), *range(24, 28)]
    odd = [i + 4 for i in even]
    for c in range(4):
        x0, x1 = shuffle(b, t[c], t[4 + c], even), shuffle(b, t[c], t[4 + c], odd)
        y0, y1 = shuffle(b, t[8 + c], t[12 + c], even), shuffle(b, t[8 + c], t[12 + c], odd)
        out[c], out[8 + c] = shuffle(b, x0, y0, even), shuffle(b, x0, y0, odd)
        out[4 + c], out[12 + c] = shuffle(b, x1, y1, even), shuffle(b, x1, y1, odd)
    return out


def columns(b, value, count):
    """The `count` members of a tile."""
    return [b.extract_value(value, i) for i in range(count)]


def tile(b, vectors):
    """Vectors of equal types as one value."""
    value = ir.Constant(ir.ArrayType(vectors[0].type, len(vectors)), ir.Undefined)
    for i, v in enumerate(vectors):
        value = b.insert_value(value, v, i)
    return value


def splat_from(b, base, at, scalar, n=16):
    """n lanes of the scalar at `at` bytes behind address `base`."""
    p = ptr(b, b.add(base, ir.Constant(base.type, at)), scalar)
    return splat(b, b.load(p, align=1), n)


def load_floats(b, addr, kind, n=16, count=None):
    """n elements of a float type at `addr` as f32 lanes; lanes from `count` on are zero and not read."""
    scalar = F32 if kind == "F32" else I16
    vty = ir.VectorType(scalar, n)
    p = ptr(b, addr, vty)
    if count is None:
        raw = b.load(p, align=1)
    else:
        lanes = mask(b, count, n)
        fnty = ir.FunctionType(vty, [p.type, I32, lanes.type, vty])
        fn = cgutils.get_or_insert_function(b.module, fnty, f"llvm.masked.load.{suffix(vty)}.p0")
        raw = b.call(fn, [p, I32(1), lanes, ir.Constant(vty, None)])
    if kind == "F32":
        return raw
    if kind == "F16":
        return f16_to_f32(b, raw)
    i = ir.VectorType(I32, n)
    return b.bitcast(b.shl(b.zext(raw, i), const(i, [16] * n)), ir.VectorType(F32, n))
