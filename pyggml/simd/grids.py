"""Runs of bytes looked up in tables that a kernel carries with it, and signs given as bits."""

import hashlib

import numpy as np
from llvmlite import ir
from numba.extending import intrinsic

from pyggml.simd import codegen as cg
from pyggml.simd.vectors import Vec


def grid(runs):
    """-> f(index): runs[index] of all lanes, one behind the other, as u8 lanes. runs: (entries, 4 or 8) of 8 bits.

    Each lane of `index` is below the number of entries; nothing checks it.
    """
    runs = np.ascontiguousarray(runs)
    count, width = runs.shape
    assert runs.itemsize == 1 and width in (4, 8)
    element = cg.I32 if width == 4 else cg.I64
    values = runs.view(np.uint32 if width == 4 else np.uint64).reshape(-1).tolist()
    name = f"grid.{hashlib.sha256(runs.tobytes()).hexdigest()[:16]}"

    def table(module):
        if name not in module.globals:
            made = ir.GlobalVariable(module, ir.ArrayType(element, count), name)
            made.initializer = cg.const(ir.ArrayType(element, count), values)
            made.linkage, made.global_constant, made.unnamed_addr, made.align = "internal", True, True, 64
        return module.globals[name]

    @intrinsic
    def look_up(tyctx, index):
        out = Vec("u8", index.n * width)

        def codegen(ctx, b, sig, a):
            entries = table(b.module)
            found = ir.Constant(ir.VectorType(element, index.n), ir.Undefined)
            for i in range(index.n):
                number = b.zext(b.extract_element(a[0], cg.I32(i)), cg.I64)
                at = b.gep(entries, [ir.Constant(cg.I64, 0), number], inbounds=True)
                found = b.insert_element(found, b.load(at), cg.I32(i))
            return b.bitcast(found, out.ir)

        return out(index), codegen

    return look_up


@intrinsic
def negate_where(tyctx, v, bits):
    """8-bit lanes: -v where the lane's bit is set, the lowest bit of the first byte (u8 lanes) for lane 0; else v."""

    def codegen(ctx, b, sig, a):
        mask = b.bitcast(a[1], ir.VectorType(cg.I1, v.n))
        return b.select(mask, b.sub(ir.Constant(a[0].type, None), a[0]), a[0])

    return v(v, bits), codegen
