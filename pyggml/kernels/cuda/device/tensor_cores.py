"""Intrinsics of the tensor cores: products of 16 x 8 tiles by a whole warp. Compute capability 8.0.

Fragments, with g = lane / 4 and t = lane % 4 (PTX ISA: Matrix Fragments for mma.m16n8k16, m16n8k32): A rows g and g + 8,
B column g, C elements (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1).
"""

from pyggml.kernels.cuda.device.intrinsic import asm, intrinsic

_FOUR = "{i32, i32, i32, i32}"
_FOUR_F = "{float, float, float, float}"


def _arguments(*kinds: str) -> str:
    return ", ".join(f"{kind} %a{i}" for i, kind in enumerate(kinds))


mma_s8 = intrinsic(
    "mma_s8", "i32*4", ["i32"] * 10,
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {$0,$1,$2,$3}, {$4,$5,$6,$7}, {$8,$9}, {$10,$11,$12,$13};",
        "=r,=r,=r,=r,r,r,r,r,r,r,r,r,r,r", _FOUR, _arguments(*["i32"] * 10)),
)  # fmt: skip
"""C (16 x 8, i32) + A (16 x 32 bytes) x B (32 x 8 bytes): a0..a3, b0, b1, c0..c3."""

mma_s8_k16 = intrinsic(
    "mma_s8_k16", "i32*4", ["i32"] * 7,
    asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {$0,$1,$2,$3}, {$4,$5}, {$6}, {$7,$8,$9,$10};",
        "=r,=r,=r,=r,r,r,r,r,r,r,r", _FOUR, _arguments(*["i32"] * 7)),
)  # fmt: skip
"""The same over 16 bytes: a0, a1, b0, c0..c3."""

_HALF = "mma.sync.aligned.m16n8k16.row.col.f32.{t}.{t}.f32 {$0,$1,$2,$3}, {$4,$5,$6,$7}, {$8,$9}, {$10,$11,$12,$13};"
_HALF_KINDS = ["i32"] * 6 + ["f32"] * 4
_HALF_TEXT = ["i32"] * 6 + ["float"] * 4

mma_f16 = intrinsic(
    "mma_f16", "f32*4", _HALF_KINDS,
    asm(_HALF.replace("{t}", "f16"), "=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f", _FOUR_F, _arguments(*_HALF_TEXT)),
)  # fmt: skip
"""C (16 x 8, f32) + A (16 x 16) x B (16 x 8), of F16, two to a register: a0..a3, b0, b1, c0..c3."""
mma_bf16 = intrinsic(
    "mma_bf16", "f32*4", _HALF_KINDS,
    asm(_HALF.replace("{t}", "bf16"), "=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f", _FOUR_F, _arguments(*_HALF_TEXT)),
)  # fmt: skip

ldmatrix_x4 = intrinsic(
    "ldmatrix_x4", "i32*4", ["i32"],
    asm("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {$0,$1,$2,$3}, [$4];", "=r,=r,=r,=r,r,~{memory}", _FOUR, "i32 %a0"),
)  # fmt: skip
"""Four 8 x 8 matrices of 16-bit elements from shared memory: lane 8 m + r gives the address of row r of matrix m, 16
bytes aligned to 16; register m holds elements 2t and 2t + 1 of row g of matrix m."""
ldmatrix_x4_trans = intrinsic(
    "ldmatrix_x4_trans", "i32*4", ["i32"],
    asm("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {$0,$1,$2,$3}, [$4];", "=r,=r,=r,=r,r,~{memory}", _FOUR,
        "i32 %a0"),
)  # fmt: skip
"""The same, each matrix transposed: register m holds elements g of rows 2t and 2t + 1."""
