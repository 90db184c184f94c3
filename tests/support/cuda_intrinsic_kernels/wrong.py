"""Kernels that do what no kernel may. Must not be launched on a GPU."""

from pyggml.kernels.cuda.spec import i64


def out_of_bounds():
    from pyggml.kernels.cuda import device as d

    def kernel(y: i64, a: i64):
        d.st_i32(y + 4 * (d.thread() + 1), d.ld_i32(a + 4 * d.thread()))

    return kernel


def reads_behind():
    from pyggml.kernels.cuda import device as d

    def kernel(y: i64, a: i64):
        d.st_i32(y + 4 * d.thread(), d.ld_i32(a + 4 * (d.thread() + 1)))

    return kernel


def odd_address():
    from pyggml.kernels.cuda import device as d

    def kernel(y: i64, a: i64):
        d.st_i32(y, d.ld_i32(a + 2))

    return kernel


def beyond_shared():
    from pyggml.kernels.cuda import device as d

    def kernel(y: i64, a: i64):
        d.sst_i32(d.shared() + 4 * d.thread(), 1)

    return kernel


def not_all_meet():
    from pyggml.kernels.cuda import device as d

    def kernel(y: i64, a: i64):
        if d.thread() < 32:
            d.barrier()

    return kernel


def half_a_warp():
    from pyggml.kernels.cuda import device as d

    def kernel(y: i64, a: i64):
        if d.thread() & 1:
            d.st_i32(y + 4 * d.thread(), d.shuffle_xor_i32(d.thread(), 1))

    return kernel


def no_barrier():
    """Each thread reads what a thread of another warp writes."""
    from pyggml.kernels.cuda import device as d

    def kernel(y: i64, a: i64):
        d.sst_f32(d.shared() + 4 * d.thread(), d.ld_f32(a + 4 * d.thread()))
        d.st_f32(y + 4 * d.thread(), d.sld_f32(d.shared() + 4 * (d.threads() - 1 - d.thread())))

    return kernel
