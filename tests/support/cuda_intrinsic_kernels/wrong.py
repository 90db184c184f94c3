"""Kernels that do what no kernel may. Must not be launched on a GPU."""

from typing import NamedTuple

from pyggml.kernels.cuda.launch_args import entry
from pyggml.kernels.cuda.spec import i64


class OutOfBoundsArgs(NamedTuple):
    y: i64
    a: i64


def out_of_bounds():
    from pyggml.kernels.cuda import device as d

    @entry(OutOfBoundsArgs)
    def kernel(y, a):
        d.st_i32(y + 4 * (d.thread() + 1), d.ld_i32(a + 4 * d.thread()))

    return kernel


class ReadsBehindArgs(NamedTuple):
    y: i64
    a: i64


def reads_behind():
    from pyggml.kernels.cuda import device as d

    @entry(ReadsBehindArgs)
    def kernel(y, a):
        d.st_i32(y + 4 * d.thread(), d.ld_i32(a + 4 * (d.thread() + 1)))

    return kernel


class OddAddressArgs(NamedTuple):
    y: i64
    a: i64


def odd_address():
    from pyggml.kernels.cuda import device as d

    @entry(OddAddressArgs)
    def kernel(y, a):
        d.st_i32(y, d.ld_i32(a + 2))

    return kernel


class BeyondSharedArgs(NamedTuple):
    y: i64
    a: i64


def beyond_shared():
    from pyggml.kernels.cuda import device as d

    @entry(BeyondSharedArgs)
    def kernel(y, a):
        d.sst_i32(d.shared() + 4 * d.thread(), 1)

    return kernel


class NotAllMeetArgs(NamedTuple):
    y: i64
    a: i64


def not_all_meet():
    from pyggml.kernels.cuda import device as d

    @entry(NotAllMeetArgs)
    def kernel(y, a):
        if d.thread() < 32:
            d.barrier()

    return kernel


class HalfAWarpArgs(NamedTuple):
    y: i64
    a: i64


def half_a_warp():
    from pyggml.kernels.cuda import device as d

    @entry(HalfAWarpArgs)
    def kernel(y, a):
        if d.thread() & 1:
            d.st_i32(y + 4 * d.thread(), d.shuffle_xor_i32(d.thread(), 1))

    return kernel


class NoBarrierArgs(NamedTuple):
    y: i64
    a: i64


def no_barrier():
    """Each thread reads what a thread of another warp writes."""
    from pyggml.kernels.cuda import device as d

    @entry(NoBarrierArgs)
    def kernel(y, a):
        d.sst_f32(d.shared() + 4 * d.thread(), d.ld_f32(a + 4 * d.thread()))
        d.st_f32(y + 4 * d.thread(), d.sld_f32(d.shared() + 4 * (d.threads() - 1 - d.thread())))

    return kernel
