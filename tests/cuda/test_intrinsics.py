"""Each CUDA intrinsic beside NumPy: in the emulator, and with `pytest -m gpu` on a GPU, where alone the text of its
instruction is read."""

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed: pip install '.[cuda]'")

from cuda_emulator import EmulatedGPU, EmulatorError, body
from cuda_fibers import machine

from pyggml.backend.cuda.driver import GPU
from pyggml.backend.cuda.staging import Staging
from pyggml.kernels.cuda import device as _  # noqa: F401  (fills the list of intrinsics)
from pyggml.kernels.cuda.device.intrinsic import INTRINSICS
from pyggml.kernels.cuda.spec import Spec

RNG = np.random.default_rng(7)


@pytest.fixture(scope="module", params=["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def gpu(request) -> GPU:
    if request.param == "emulated":
        return EmulatedGPU()
    return request.getfixturevalue("card").gpu


def run(
    gpu: GPU, name: str, factory: str, result: np.ndarray, *inputs, args=(), grid=1, threads=32, shared=0, numbers=()
):
    """`result` filled by a kernel of tests/support/cuda_intrinsic_kernels: (result, inputs, numbers)."""
    staging = Staging(gpu)
    kernel = gpu.load(Spec(f"cuda_intrinsic_kernels.{name}", factory, tuple(args)))
    arrays = [result, *inputs]
    places = [gpu.alloc(x.nbytes) for x in arrays]
    for at, x in zip(places, arrays, strict=True):
        staging.write(at, np.ascontiguousarray(x).reshape(-1).view(np.uint8))
    values = np.array([*places, *numbers], np.int64)
    pointers = values.ctypes.data + 8 * np.arange(values.size, dtype=np.int64)
    gpu.launch(kernel, (grid, 1, 1), threads, shared, int(pointers.ctypes.data))
    out = np.frombuffer(staging.read(places[0], result.nbytes), result.dtype).reshape(result.shape)
    for at in places:
        gpu.free(at)
    staging.close()
    return out


def test_integers(gpu):
    n = 200
    a, b, c = RNG.integers(-(2**31), 2**31, (3, n)).astype(np.int32)
    out = run(gpu, "numbers", "integers", np.zeros((6, n), np.int32), a, b, c, grid=4, threads=64, numbers=(n,))
    bytes_a, bytes_b = a.view(np.int8).reshape(n, 4).astype(np.int32), b.view(np.int8).reshape(n, 4).astype(np.int32)
    with np.errstate(over="ignore"):
        assert (out[0] == c + (bytes_a * bytes_b).sum(1).astype(np.int32)).all()
    eight = np.concatenate([a.view(np.uint8).reshape(n, 4), b.view(np.uint8).reshape(n, 4)], 1)
    which = (c[:, None] >> (4 * np.arange(4))) & 7
    assert (out[1].view(np.uint8).reshape(n, 4) == np.take_along_axis(eight, which, 1)).all()
    pair = (b.view(np.uint32).astype(np.uint64) << np.uint64(32)) | a.view(np.uint32)
    assert (out[2].view(np.uint32) == (pair >> (c & 31).astype(np.uint64)).astype(np.uint32)).all()
    p, q = a & 0x7FFFFFFF, (b & 0xFFFF) + 1
    assert (out[3] == p // q).all() and (out[4] == p % q).all()
    assert (out[5].view(np.uint32) == a.view(np.uint32) >> (c & 31).astype(np.uint32)).all()


def test_floats(gpu):
    special = np.array([0.0, -0.0, 0.5, -0.5, 1.5, 2.5, -2.5, 1e-3, 100.25, -100.75, 65504.0, 1e-7], np.float32)
    a = np.concatenate([special, RNG.standard_normal(88).astype(np.float32) * 20])
    b, c = RNG.standard_normal((2, 100)).astype(np.float32)
    b[5] = np.nan
    out = run(gpu, "numbers", "floats", np.zeros((12, 100), np.float32), a, b, c, grid=2, threads=64, numbers=(100,))
    wide = [x.astype(np.float64) for x in (a, b, c)]
    finite = np.arange(100) != 5
    assert np.allclose(out[0][finite], (wide[0] * wide[1] + wide[2])[finite], rtol=1e-6, atol=1e-6)
    assert (out[1] == (a * b + c))[finite].all()
    assert (out[2] == np.fmax(a, b)).all() and out[2][5] == a[5]
    assert (out[3] == np.copysign(a, b))[finite].all()
    assert (out[4] == np.floor(a)).all() and (out[5] == np.rint(a)).all() and (out[6] == np.trunc(a)).all()
    with np.errstate(all="ignore"):
        assert np.allclose(out[7], np.exp2(wide[0]), rtol=2e-6, atol=1e-38)
        assert np.allclose(out[8], (1 / wide[0]).astype(np.float32), rtol=3e-7)
    assert (out[9] == a.astype(np.float16).astype(np.float32)).all()
    assert np.abs(out[10] - a).max() <= 2.0**-8 * np.abs(a).max() and (out[10].view(np.uint32) & 0xFFFF == 0).all()
    assert (out[11].view(np.uint32) == a.view(np.uint32)).all()


def test_angles(gpu):
    x = np.linspace(-np.pi, np.pi, 300, dtype=np.float32)
    out = run(gpu, "numbers", "angles", np.zeros((2, 300), np.float32), x, grid=5, threads=64, numbers=(300,))
    assert np.abs(out[0] - np.sin(x)).max() < 2e-6 and np.abs(out[1] - np.cos(x)).max() < 2e-6


def test_packs(gpu):
    if gpu.cc < (8, 0):
        pytest.skip(f"compute capability {gpu.cc}")
    a, b = RNG.standard_normal((2, 100)).astype(np.float32)
    a[3] = np.nan
    out = run(gpu, "numbers", "packs", np.zeros((2, 100), np.int32), a, b, grid=2, threads=64, numbers=(100,))
    halves = out[0].view(np.float16).reshape(100, 2)
    assert (
        np.array_equal(halves[:, 0], a.astype(np.float16), equal_nan=True)
        and (halves[:, 1] == b.astype(np.float16)).all()
    )
    brains = (out[1].view(np.uint16).reshape(100, 2).astype(np.uint32) << 16).view(np.float32)
    assert np.isnan(brains[3, 0]) and np.abs(brains[:, 1] - b).max() < 2.0**-8 * np.abs(b).max()


@pytest.mark.parametrize("threads", [32, 96, 1024])
def test_warps_and_blocks(gpu, threads):
    x = RNG.standard_normal(threads).astype(np.float32)
    out = run(gpu, "exchange", "warps", np.zeros((8, threads), np.float32), x, threads=threads, shared=256)
    lane, me = np.arange(threads) & 31, np.arange(threads)
    base = me - lane
    assert (out[0] == x[base + (lane ^ 5)]).all() and (out[1] == (me ^ 16)).all()
    assert (out[2] == x[base + 3]).all() and (out[3] == base + (lane + 1) % 32).all()
    rows = x.reshape(-1, 32)
    assert np.allclose(out[4].reshape(-1, 32), rows.sum(1, keepdims=True), atol=1e-5)
    assert (out[5].reshape(-1, 32) == rows.max(1, keepdims=True)).all()
    assert np.allclose(out[6], x.sum(), atol=1e-4) and (out[7] == x.max()).all()


def test_the_last_block_sees_what_all_have_written(gpu):
    for blocks in (1, 7, 300):
        result = np.full((blocks + 1, 64), -1, np.int32)
        out = run(
            gpu,
            "exchange",
            "tickets",
            result,
            np.zeros(1, np.int32),
            grid=blocks,
            threads=64,
            shared=16,
            numbers=(blocks,),
        )
        written = np.arange(blocks)[:, None] + np.arange(64)
        assert (out[:blocks] == written).all() and (out[blocks] == written.sum(0)[::-1]).all()


def test_threads_count_together(gpu):
    numbers = RNG.integers(0, 32, 256).astype(np.int32)
    out = run(gpu, "exchange", "counts", np.zeros(288, np.int32), numbers, threads=256, shared=128)
    drawn, often = out[:256], np.bincount(numbers, minlength=32)
    assert (out[256:] == 100 * np.arange(32) + often).all()
    for n in range(32):
        assert sorted(drawn[numbers == n]) == [*range(100 * n, 100 * n + often[n])]


def test_loads_and_stores(gpu):
    a = RNG.integers(0, 256, (32, 64), dtype=np.uint8)
    a[:, 1::2] &= 0x3F  # no NaNs among halves, which an implementation may make quiet
    out = run(gpu, "exchange", "moves", np.zeros((32, 128), np.uint8), a, shared=4096)
    assert (out[:, 0] == a[:, 0]).all() and (out[:, 1] == (a[:, 1].view(np.int8) >> 1).view(np.uint8)).all()
    assert (out[:, 2:16] == a[:, 2:16]).all()
    turned = {16: (16, 4), 32: (32, 2), 40: (40, 2), 48: (48, 4)}
    for at, (source, n) in turned.items():
        words = a[:, source : source + 4 * n].reshape(32, n, 4)
        assert (out[:, at : at + 4 * n].reshape(32, n, 4) == words[:, ::-1]).all(), at
    assert (out[:, 64:68] == a[:, :4]).all()
    brain = np.zeros((32, 4), np.uint8)
    brain[:, 2:] = a[:, 4:6]
    with np.errstate(over="ignore"):
        assert (out[:, 68:70].copy().view(np.float16)[:, 0] == brain.view(np.float32)[:, 0].astype(np.float16)).all()
    b = a[::-1]
    assert (out[:, 72:88] == b[:, :16]).all()
    words = b[:, 16:32].copy().view(np.int32)
    with np.errstate(over="ignore"):
        assert (out[:, 88:96].copy().view(np.int32) == words[:, :2] + words[:, 2:]).all()
    assert (out[:, 96:128] == b[:, 32:64]).all()


@pytest.mark.parametrize(("factory", "k"), [("bytes_32", 32), ("bytes_16", 16)])
def test_tensor_cores_with_bytes(gpu, factory, k):
    if gpu.cc < (8, 0):
        pytest.skip(f"compute capability {gpu.cc}")
    a, b = (RNG.integers(-128, 128, (n, k)).astype(np.int8) for n in (16, 8))
    out = run(gpu, "tiles", factory, np.zeros((16, 8), np.int32), a, b)
    start = np.tile([[1, 2]], (16, 4)) + np.repeat([[0], [2]], 8, axis=0)
    assert (out == start + a.astype(np.int32) @ b.T.astype(np.int32)).all()


@pytest.mark.parametrize("brain", [0, 1])
def test_tensor_cores_with_halves(gpu, brain):
    if gpu.cc < (8, 0):
        pytest.skip(f"compute capability {gpu.cc}")
    a, b = (RNG.integers(-64, 64, (n, 16)).astype(np.float32) / 8 for n in (16, 8))
    bits = [(x.view(np.uint32) >> 16).astype(np.uint16) if brain else x.astype(np.float16) for x in (a, b)]
    out = run(gpu, "tiles", "halves", np.zeros((16, 8), np.float32), *bits, args=(brain,))
    assert np.allclose(out, np.tile([1.0, 2.0], 4) + a @ b.T, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("transposed", [0, 1])
def test_matrices_from_shared_memory(gpu, transposed):
    if gpu.cc < (8, 0):
        pytest.skip(f"compute capability {gpu.cc}")
    a = np.arange(4 * 8 * 8, dtype=np.uint16).reshape(4, 8, 8)
    out = run(gpu, "tiles", "loads", np.zeros((32, 4), np.int32), a, args=(transposed,), shared=512)
    found = out.view(np.uint16).reshape(8, 4, 4, 2).transpose(2, 0, 1, 3).reshape(4, 8, 8)  # matrix, g, (t, half)
    assert (found == (a.transpose(0, 2, 1) if transposed else a)).all()


def copied(gpu, mistake):
    """-> (what a kernel with this mistake makes of random words, what it should)."""
    a = RNG.integers(0, 2**31, (64, 2, 4)).astype(np.int32)
    out = run(gpu, "tiles", "copies", np.zeros((64, 2, 4), np.int32), a, args=(mistake,), threads=64, shared=2048)
    return out, np.stack([a[:, 0], a[::-1, 1]], 1)


def test_asynchronous_copies(gpu):
    if gpu.cc < (8, 0):
        pytest.skip(f"compute capability {gpu.cc}")
    out, expected = copied(gpu, 0)
    assert (out == expected).all()


# ---- the emulator itself


def test_the_emulator_knows_every_word():
    machine()
    for each in INTRINSICS.values():
        assert body(each)[0], each.name


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("out_of_bounds", "stores outside of all memory: 4 bytes"),
        ("reads_behind", "loads outside of all memory"),
        ("odd_address", "loads from an odd address"),
        ("beyond_shared", "stores outside of shared memory"),
        ("not_all_meet", "threads wait for each other"),
        ("half_a_warp", "threads wait for each other"),
    ],
)
def test_the_emulator_refuses_what_a_gpu_would_not_survive(factory, message):
    gpu = EmulatedGPU()
    with pytest.raises(EmulatorError, match=message):
        run(gpu, "wrong", factory, np.zeros(64, np.int32), np.zeros(64, np.int32), threads=64, shared=64)


def test_the_emulator_finds_a_missing_barrier():
    """Whatever order the warps run in, some launch shows it: the memory is poison until somebody has written it."""
    x = np.arange(128, dtype=np.float32)
    right = 0
    for seed in range(6):
        out = run(EmulatedGPU(seed=seed), "wrong", "no_barrier", np.zeros(128, np.float32), x, threads=128, shared=512)
        right += bool((out == x[::-1]).all())
    assert right < 6


@pytest.mark.parametrize("mistake", [1, 2, 3, 4])
def test_the_emulator_shows_copies_to_nobody_who_has_not_waited(mistake):
    for seed in range(3):
        out, expected = copied(EmulatedGPU(seed=seed), mistake)
        assert (out != expected).any()
