"""Bytes looked up in a table of sixteen, and bytes seen as words of 32 bits."""

from llvmlite import ir
from numba.extending import intrinsic

from pyggml.simd import codegen as cg
from pyggml.simd.vectors import Vec

_WIDTH = {"v2": 16, "v3": 32, "v4": 64, "vnni": 64}
_SHUFFLE = {16: "llvm.x86.ssse3.pshuf.b.128", 32: "llvm.x86.avx2.pshuf.b", 64: "llvm.x86.avx512.pshuf.b.512"}
"""By bytes a register: the instruction that permutes bytes within 16."""


def emit_table(b, entries, v):
    """entries[lane] of sixteen i8, for i8 lanes from 0 to 15."""
    if cg.LEVEL not in _WIDTH:
        return _choice(b, entries, v)
    width = min(_WIDTH[cg.LEVEL], v.type.count)
    vty = ir.VectorType(cg.I8, width)
    levels = cg.const(vty, list(entries) * (width // 16))
    return cg.in_parts(b, v.type.count // width, lambda x: cg.call(b, _SHUFFLE[width], vty, [levels, x]), v)


def _choice(b, entries, v):
    """A tree of choices, by bit 0 of the lanes, bit 1, bit 2, bit 3."""
    level = [cg.const(v.type, [e] * v.type.count) for e in entries]
    for bit in range(4):
        chosen = b.icmp_unsigned(
            "!=", b.and_(v, cg.const(v.type, [1 << bit] * v.type.count)), ir.Constant(v.type, None)
        )
        level = [b.select(chosen, level[i + 1], level[i]) for i in range(0, len(level), 2)]
    return level[0]


def table(entries):
    """-> f(v): entries[lane] of sixteen i8, for u8 lanes below 16."""
    entries = [int(e) for e in entries]
    assert len(entries) == 16

    @intrinsic
    def look_up(tyctx, v):
        return Vec("i8", v.n)(v), lambda ctx, b, sig, a: emit_table(b, entries, a[0])

    return look_up


@intrinsic
def as_words(tyctx, v):
    """The same bits as u32 lanes."""
    out = Vec("u32", v.n // 4)
    return out(v), lambda ctx, b, sig, a: b.bitcast(a[0], out.ir)


@intrinsic
def as_bytes(tyctx, v):
    """u32 lanes: the same bits as u8 lanes."""
    out = Vec("u8", v.n * 4)
    return out(v), lambda ctx, b, sig, a: b.bitcast(a[0], out.ir)
