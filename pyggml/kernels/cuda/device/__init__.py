"""The vocabulary of CUDA kernels, and the only way to numba-cuda. Imported inside factories alone, when a kernel is
compiled. Owns the list of intrinsics and the few functions made of them; must not know any kernel.

Integers of Python are i64 in a kernel; an intrinsic takes its parameters' types. A float literal would be f64: write f32(0.5).
"""

from collections.abc import Callable
from typing import Any

from numba import cuda as _cuda
from numba.cuda import types as _types

from pyggml.kernels.cuda.device.arithmetic import (
    b2f,
    bits_float,
    cos_turn,
    dp4a,
    ex2,
    f2b,
    f2h,
    float_bits,
    fma,
    fmaximum,
    funnel,
    h2f,
    mul_rn,
    once,
    pack_bf16,
    pack_f16,
    permute,
    rcp,
    round_down,
    round_i32,
    shr,
    sign_of,
    sin_turn,
    truncate_i32,
    udiv,
    urem,
)
from pyggml.kernels.cuda.device.memory import (
    add_i32,
    cp_async4,
    cp_async8,
    cp_async16,
    cp_async_commit,
    cp_async_wait,
    cp_async_wait_one,
    ld_bf16,
    ld_f16,
    ld_f32,
    ld_f32x2,
    ld_f32x4,
    ld_i8,
    ld_i32,
    ld_i32x2,
    ld_i32x4,
    ld_i64,
    ld_u8,
    ld_u16,
    sadd_i32,
    shared,
    sld_f16,
    sld_f32,
    sld_f32x2,
    sld_f32x4,
    sld_i8,
    sld_i32,
    sld_i32x2,
    sld_i32x4,
    sld_u8,
    sld_u16,
    sst_bf16,
    sst_f16,
    sst_f32,
    sst_f32x2,
    sst_f32x4,
    sst_i32,
    sst_i32x2,
    sst_i32x4,
    sst_u8,
    sst_u16,
    st_bf16,
    st_f16,
    st_f32,
    st_f32x2,
    st_f32x4,
    st_i32,
    st_i32x2,
    st_i32x4,
    st_i64,
    st_u8,
    st_u16,
)
from pyggml.kernels.cuda.device.tensor_cores import (
    ldmatrix_x4,
    ldmatrix_x4_trans,
    mma_bf16,
    mma_f16,
    mma_s8,
    mma_s8_k16,
)
from pyggml.kernels.cuda.device.threads import (
    barrier,
    block_x,
    block_y,
    block_z,
    blocks_x,
    blocks_y,
    blocks_z,
    shuffle_f32,
    shuffle_i32,
    shuffle_xor_f32,
    shuffle_xor_i32,
    thread,
    threads,
    warp_barrier,
)

f32, i32, i64 = _types.float32, _types.int32, _types.int64

cuda: Any = _cuda
"""`cuda.local.array(n, f32)`: an array that lives in registers where loops over it have constant bounds; n is a name of
the factory's, or a number."""


def inline(function: Callable[..., Any]) -> Any:
    """A part of kernels, taken into its caller."""
    return _cuda.jit(device=True, inline="always")(function)


@inline
def warp_sum(x):
    """The sum over the warp's 32 lanes, the same in all of them."""
    x += shuffle_xor_f32(x, 16)
    x += shuffle_xor_f32(x, 8)
    x += shuffle_xor_f32(x, 4)
    x += shuffle_xor_f32(x, 2)
    x += shuffle_xor_f32(x, 1)
    return x


@inline
def warp_max(x):
    """The largest over the warp's lanes; NaNs count only if all are."""
    x = fmaximum(x, shuffle_xor_f32(x, 16))
    x = fmaximum(x, shuffle_xor_f32(x, 8))
    x = fmaximum(x, shuffle_xor_f32(x, 4))
    x = fmaximum(x, shuffle_xor_f32(x, 2))
    x = fmaximum(x, shuffle_xor_f32(x, 1))
    return x


@inline
def block_sum(x, area):
    """The sum over all threads of a block (a multiple of 32, at most 1024); `area`: 128 bytes of shared memory.

    All threads call it; the area may be used again after the next barrier.
    """
    x = warp_sum(x)
    me = thread()
    if me & 31 == 0:
        sst_f32(area + (me >> 5) * 4, x)
    barrier()
    x = f32(0)
    if me & 31 < threads() >> 5:
        x = sld_f32(area + (me & 31) * 4)
    return warp_sum(x)


@inline
def block_max(x, area):
    """The largest over all threads of a block, as `block_sum`."""
    x = warp_max(x)
    me = thread()
    if me & 31 == 0:
        sst_f32(area + (me >> 5) * 4, x)
    barrier()
    x = sld_f32(area)
    if me & 31 < threads() >> 5:
        x = sld_f32(area + (me & 31) * 4)
    return warp_max(x)
