"""F32, F16 and BF16: single elements. Imported by factories only (Numba)."""

from pyggml import simd as v
from pyggml.jit import inline
from pyggml.kernels.cpu.formats.forms import Elements, Functions


@inline
def same(x):
    return x


FUNCTIONS = {
    "F32": Functions(elements=lambda: Elements("f32", same, same)),
    "F16": Functions(elements=lambda: Elements("u16", v.f16_to_f32, v.f32_to_f16)),
    "BF16": Functions(elements=lambda: Elements("u16", v.bf16_to_f32, v.f32_to_bf16)),
}
