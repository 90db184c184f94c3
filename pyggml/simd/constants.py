"""Tables in read-only memory, for look-ups by number that no register holds.

Kernels import it by its own name: what is in a kernel's object file changes where a table does, and nowhere else.
"""

import hashlib

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from pyggml.simd import codegen as cg


def memory(values):
    """-> f(): the address of an array's elements, in order."""
    raw = np.ascontiguousarray(values).tobytes()
    name = f"table.{hashlib.sha256(raw).hexdigest()[:16]}"

    @intrinsic
    def address(tyctx):
        def codegen(ctx, b, sig, a):
            if name in b.module.globals:
                table = b.module.globals[name]
            else:
                vty = ir.ArrayType(cg.I8, len(raw))
                table = ir.GlobalVariable(b.module, vty, name)
                table.linkage, table.global_constant, table.align = "internal", True, 64
                table.initializer = ir.Constant(vty, bytearray(raw))
            return b.ptrtoint(table, cg.I64)

        return types.uintp(), codegen

    return address
