"""The Numba types: `Vec`, lanes in one LLVM vector, and `Tile`, several registers handled as one value."""

from llvmlite import ir
from numba import types
from numba.extending import models, register_model

from pyggml.simd import codegen as cg


class Vec(types.Type):
    """`n` lanes of `elem` ("u8" ... "f32"), held in one LLVM vector value."""

    def __init__(self, elem, n):
        self.elem, self.n = elem, n
        super().__init__(name=f"vec<{elem}x{n}>")

    @property
    def ir(self):
        return ir.VectorType(cg.SCALAR[self.elem], self.n)


@register_model(Vec)
class _VecModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, fe_type.ir)


class Tile(types.Type):
    """`count` vectors of 16 lanes; one for each column of a tile of 16 rows."""

    def __init__(self, elem, count):
        self.elem, self.count = elem, count
        super().__init__(name=f"tile<{elem}x16x{count}>")

    @property
    def ir(self):
        return ir.ArrayType(ir.VectorType(cg.SCALAR[self.elem], 16), self.count)


@register_model(Tile)
class _TileModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, fe_type.ir)
