"""LLVM vectors as Numba values: the primitives that CPU kernels are written in.

Owns the list of primitives; each file of the package is one kind of them. Knows no tensor. Kernels are written
for registers of 512 bits (16 x f32, 64 x u8), which LLVM legalises for narrower machines: a kernel is the same at every level.
Instructions that have no generic spelling are chosen by `LEVEL`. No sum depends on chance: `hsum` is a fixed tree.
"""

import numpy as np

from pyggml.jit import device
from pyggml.simd.arithmetic import (
    absolute,
    bits_f32,
    copy_sign,
    equal_bits,
    f32_bits,
    fma,
    highest_bit,
    i32_to_i8,
    lowest_bit,
    maximum,
    minimum,
    nan_bits,
    negative,
    round_even,
    sqrt,
    to_f32,
    truncate_to_i32,
    where_equal,
    where_less,
    where_nan,
)
from pyggml.simd.blocks import bits, bytes_at, nibbles, transposer
from pyggml.simd.codegen import HAS_F16C, HAS_FMA, HAS_VNNI, LEVEL, U
from pyggml.simd.columns import (
    columns_of_bytes,
    columns_of_nibbles,
    exponents_at,
    halves_at,
    put_columns,
    put_columns_of,
    put_products_of,
    signed_columns,
)
from pyggml.simd.dot import SIGNED_BIAS, dot_u8i8, dot_weights, signed_weights
from pyggml.simd.exponent import e8m0_at, e8m0_gather
from pyggml.simd.functions import exp, exp2, tanh
from pyggml.simd.grids import grid, negate_where
from pyggml.simd.groups import ROWS, ColumnOps
from pyggml.simd.half import (
    bf16_to_f32,
    f16_at,
    f16_column,
    f16_gather,
    f16_gather_pairs,
    f16_to_f32,
    f32_to_bf16,
    f32_to_f16,
    put_f16,
)
from pyggml.simd.lanes import (
    as_i8,
    constant,
    hmax,
    hsum,
    join,
    lane,
    low_u8,
    select_part,
    shuffler,
    splat_f32,
    splat_i32,
    splat_like,
    widen,
    zero_f32,
    zero_f32x8,
    zero_i32,
    zeros,
)
from pyggml.simd.memory import (
    broadcast_4i8,
    broadcast_f32,
    broadcast_i32,
    broadcaster,
    copy_bytes,
    f32_at,
    float_loader,
    i32_at,
    i32_once,
    i64_at,
    i64_once,
    load_f32,
    load_f32_part,
    load_f32x8,
    load_i8,
    load_i32,
    load_u8,
    load_u8x16,
    load_u8x32,
    load_u16,
    load_u16_part,
    load_u16x8,
    loader,
    part_loader,
    prefetch,
    prefetch_l2,
    put_f32,
    put_i32,
    put_i64,
    put_u8,
    put_u16,
    reader,
    scatter_i32,
    store,
    store_part,
    store_strided,
    strided_loader,
    u8_at,
    u16_at,
    u64_at,
)
from pyggml.simd.tables import as_bytes, as_words, table
from pyggml.simd.threads import (
    atomic_add,
    atomic_load,
    atomic_replace,
    atomic_store,
    call_kernel,
    call_step,
    pause,
    sched_yield,
    sem_post,
    sem_wait,
)
from pyggml.simd.tiles import TileOps
from pyggml.simd.vectors import Vec
