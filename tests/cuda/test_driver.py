"""Every call of the driver goes to its own GPU, and what the driver refuses ends in one line: on a driver that takes
notes and fails on demand, so no GPU is needed."""

import sys
import threading
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed: pip install '.[cuda]'")
from cuda_fake_driver import CUresult
from cuda_recording import place
from mutants import Mutant, assert_caught
from op_cases import F32

from pyggml import ops
from pyggml.backend.cuda import compiled, cuda_devices, driver, why_no_cuda
from pyggml.backend.cuda.device import CudaDevice
from pyggml.backend.cuda.driver import CudaGPU
from pyggml.dtypes import GGMLType
from pyggml.errors import DeviceError
from pyggml.graph import build_forward
from pyggml.kernels.cuda.spec import Spec
from pyggml.tensor import Tensor


def use(gpu: CudaGPU) -> None:
    """Everything that can be asked of a GPU, with 16 bytes."""
    gpu.memory()
    address, pinned = gpu.alloc(16), gpu.pin(16)
    gpu.upload(address, pinned.ctypes.data, 16)
    gpu.download(pinned.ctypes.data, address, 16)
    gpu.copy(address, address, 16)
    gpu.fill(address, 0, 16)
    mark = gpu.event()
    gpu.record(mark)
    gpu.wait(mark)
    kernel = gpu.load(Spec("unary", "scale"))
    gpu.prepare(kernel, 100_000)
    parameters = np.zeros(1, np.int64)
    gpu.launch(kernel, (1, 1, 1), 32, 0, parameters.ctypes.data)
    gpu.begin_capture()
    graph = gpu.end_capture()
    gpu.replay(graph)
    gpu.drop(graph)
    gpu.synchronize()
    gpu.unpin(pinned)
    gpu.free(address)


PER_DEVICE = ("cuDeviceGet", "cuInit", "cuDriver", "cuDevicePrimary", "cuCtxSetCurrent")


def test_each_call_finds_its_own_gpu_current(fake):
    """Two GPUs in turn, by two threads; and another library, which makes a context of its own current."""
    gpus = [CudaGPU(0), CudaGPU(1)]

    def rounds(order) -> None:
        for number in order:
            before = len(fake.calls)
            use(gpus[number])
            mine = [c for c in fake.calls[before:] if not c.name.startswith(PER_DEVICE)]
            mine = [c for c in mine if c.thread == threading.get_ident()]
            assert len(mine) > 15 and {c.context for c in mine} == {f"context {number}"}, mine
            fake.cuCtxSetCurrent("a context of PyTorch")

    with ThreadPoolExecutor(2) as pool:
        others = [pool.submit(rounds, order * 20) for order in ((1, 0), (0, 1, 1))]
        rounds((0, 1, 0, 1, 1, 0))
        for other in others:
            other.result()
    assert len(fake.named("cuDevicePrimaryCtxRetain")) == len(fake.named("cuStreamCreate")) == 2
    assert not fake.memory


SET = 'self._ok(d.cuCtxSetCurrent(self._context), "context")'
MUTANTS: dict[str, tuple[Mutant, Callable[..., None]]] = {
    "the context is made current once": ((CudaGPU, "_d", SET, "pass"), test_each_call_finds_its_own_gpu_current),
    "each GPU remembers what it made current": (
        (CudaGPU, "_d", SET, "seen = self.__dict__.setdefault('seen', set()); me = threading.get_ident()\n    if me not in seen:\n        seen.add(me); " + SET),
        test_each_call_finds_its_own_gpu_current,
    ),
}  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_are_caught(monkeypatch: pytest.MonkeyPatch, mutant: str, fake) -> None:
    assert_caught(monkeypatch, *MUTANTS[mutant], fake=fake)
    assert fake.wrong, "the fake driver was content"
    fake.wrong.clear()


def test_the_fake_driver_refuses_what_is_not_of_the_current_context(fake):
    a, b = CudaGPU(0), CudaGPU(1)
    mine, event, kernel = a.alloc(64), a.event(), a.load(Spec("unary", "scale"))
    parameters = np.zeros(1, np.int64).ctypes.data
    for step in (
        lambda: b.fill(mine, 0, 64),
        lambda: b.copy(b.alloc(64), mine, 64),
        lambda: b.free(mine),
        lambda: b.record(event),
        lambda: b.launch(kernel, (1, 1, 1), 32, 0, parameters),
        lambda: a.fill(mine, 0, 65),
        lambda: a.upload(mine, np.zeros(64, np.uint8).ctypes.data, 64),
    ):
        before = len(fake.wrong)
        with pytest.raises(DeviceError, match="CUDA_ERROR_INVALID"):
            step()
        assert len(fake.wrong) == before + 1
    a.begin_capture()
    graph = a.end_capture()
    a.drop(graph)
    with pytest.raises(DeviceError, match="launching a graph: CUDA_ERROR_INVALID_HANDLE"):
        a.replay(graph)
    a.begin_capture()
    with pytest.raises(DeviceError, match="CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"):
        a.alloc(64)
    assert fake.wrong.pop() == "cuMemAlloc while a graph is captured"
    fake.wrong.clear()


def test_a_call_fails_so_many_times_and_a_lost_context_for_ever(fake):
    a, b = CudaGPU(0), CudaGPU(1)
    fake.fail("cuMemAlloc", "OUT_OF_MEMORY", times=1)
    with pytest.raises(DeviceError, match="cannot allocate"):
        a.alloc(1)
    a.alloc(1)
    fake.fail("cuMemAlloc", "ECC_UNCORRECTABLE", times=1)
    with pytest.raises(DeviceError, match="CUDA_ERROR_ECC_UNCORRECTABLE"):
        a.alloc(1)
    b.alloc(1)
    assert int(fake.cuMemGetInfo()[0]) == 0, "of the other GPU"
    fake.cuCtxSetCurrent("context 0")
    assert fake.cuMemGetInfo()[0].name == "CUDA_ERROR_ECC_UNCORRECTABLE"


def test_the_real_interface_has_the_names_that_the_fake_one_has():
    real = pytest.importorskip("cuda.bindings.driver")
    for result in CUresult:
        assert real.CUresult(result).name == result.name
    assert not [name for name in driver.STICKY if not hasattr(real.CUresult, name)]


@pytest.mark.parametrize("status", ["SYSTEM_DRIVER_MISMATCH", "STUB_LIBRARY", "UNKNOWN"])
def test_a_driver_that_does_not_start_leaves_the_cpu(fake, status, capsys):
    from pyggml_cli.devices import gpu_devices

    fake.fails["cuInit"] = CUresult[f"CUDA_ERROR_{status}"]
    assert gpu_devices() == []
    assert capsys.readouterr().err == f"warning: CUDA: the driver does not start: CUDA_ERROR_{status}\n"


def test_an_interface_that_does_not_load_leaves_the_cpu(fake, monkeypatch):
    class LibraryNotFound(Exception):
        pass

    def load():
        raise LibraryNotFound("libcuda.so: no such file\nsearched in 20 folders")

    monkeypatch.setattr(driver, "_driver", load)
    assert cuda_devices() == []
    assert why_no_cuda() == "CUDA: the Python interface does not start: LibraryNotFound: libcuda.so: no such file"


def test_an_old_driver_is_named_before_a_model_is_loaded(fake):
    fake.version = 12040
    assert cuda_devices() == []
    needed = "CUDA: the NVIDIA driver supports CUDA 12.4; 13.0 is needed, which driver 580 brings"
    assert why_no_cuda() == f"{needed}; pip install 'pyggml[cuda12]' makes kernels for CUDA 12"
    fake.version = 11080
    assert why_no_cuda() == needed.replace("12.4", "11.8")
    fake.version = 13010
    assert [d.name for d in cuda_devices()] == ["CUDA0", "CUDA1"] and why_no_cuda() is None


def test_drivers_of_cuda_12_take_what_its_toolkit_makes(fake, monkeypatch):
    monkeypatch.setattr(driver, "toolkit", lambda: 12)
    for version in (12000, 12040, 12090, 13000):
        fake.version = version
        assert len(cuda_devices()) == 2
    fake.version = 11080
    assert why_no_cuda() == "CUDA: the NVIDIA driver supports CUDA 11.8; 12.0 is needed, which driver 525 brings"


def test_a_machine_without_a_gpu_is_no_warning(fake, capsys):
    from pyggml_cli.devices import gpu_devices

    fake.fails["cuInit"] = CUresult.CUDA_ERROR_NO_DEVICE
    assert gpu_devices() == [] and capsys.readouterr().err == ""
    assert str(why_no_cuda()).startswith("there is no GPU")


# ---- a GPU that is lost


def chain(device: CudaDevice, n: int = 5):
    """-> (backend, plan) of n nodes."""
    t = Tensor(F32, (32,))
    for _ in range(n):
        t = ops.scale(t, 2.0)
    place(device, t)
    backend = device.open()
    return backend, backend.plan(build_forward([t]))


def test_after_an_illegal_address_memory_is_given_back_and_all_else_is_refused(fake):
    device = CudaDevice(CudaGPU(0))
    buffer = device.alloc_buffer(64)
    backend, plan = chain(device)
    fake.fails["cuStreamSynchronize"] = CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
    with pytest.raises(DeviceError, match="Fake 0 failed: CUDA_ERROR_ILLEGAL_ADDRESS"):
        backend.compute(plan)
    asked = len(fake.calls)
    del plan
    buffer.free()
    backend.close()
    assert device.memory() == (0, 1 << 30)
    for again in (lambda: device.alloc_buffer(64), backend.synchronize):
        with pytest.raises(DeviceError, match="Fake 0 cannot be used any more after CUDA_ERROR_ILLEGAL_ADDRESS: start"):
            again()
    assert len(fake.calls) == asked
    CudaDevice(CudaGPU(1)).memory()


# ---- launches


@pytest.mark.parametrize(
    ("cc", "version", "said", "early"),
    [
        ((9, 0), 13000, "", True), ((12, 0), 12030, "1", True), ((8, 9), 13000, "", False), ((9, 0), 12020, "", False),
        ((9, 0), 13000, "0", False),
    ],
)  # fmt: skip
def test_kernels_begin_early_where_gpu_and_driver_can(fake, monkeypatch, cc, version, said, early):
    monkeypatch.setenv("PYGGML_EARLY_LAUNCH", said)
    monkeypatch.setattr(fake, "cc", cc)
    monkeypatch.setattr(fake, "version", version)
    gpu = CudaGPU(0)
    kernel, parameters = gpu.load(Spec("unary", "scale")), np.zeros(1, np.int64).ctypes.data
    for grid in ((3, 2, 1), (3, 2, 1), (5, 1, 1)):
        gpu.launch(kernel, grid, 64, 128, parameters)
    plain, others = fake.named("cuLaunchKernel"), fake.named("cuLaunchKernelEx")
    assert (len(plain), len(others)) == ((0, 3) if early else (3, 0))
    for call, grid in zip(others, ((3, 2, 1), (3, 2, 1), (5, 1, 1)), strict=False):
        how = call.args[0]
        assert (how.gridDimX, how.gridDimY, how.gridDimZ) == grid
        assert (how.blockDimX, how.blockDimY, how.blockDimZ, how.sharedMemBytes) == (64, 1, 1, 128)
        (attribute,) = how.attrs
        assert how.numAttrs == 1 and attribute.id == 6
        assert attribute.value.programmaticStreamSerializationAllowed == 1
        assert call.args[1:] == (kernel, parameters, 0)
    assert len({id(call.args[0]) for call in others}) == (2 if early else 0)
    assert not fake.wrong


def test_the_interface_takes_a_launch_that_begins_early():
    """Of the real package: its classes have the fields that are set, and its call takes them; without a driver it says so."""
    driver = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    gpu = object.__new__(CudaGPU)
    gpu._launches, gpu._stream = {}, driver.CUstream(0)
    how = gpu._how((3, 2, 1), 64, 128)
    assert (how.gridDimX, how.gridDimY, how.gridDimZ, how.blockDimX, how.sharedMemBytes) == (3, 2, 1, 64, 128)
    assert how.numAttrs == 1 and how.attrs[0].value.programmaticStreamSerializationAllowed == 1
    assert int(how.attrs[0].id) == 6, "cuda.h: CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION"


# ---- graphs


@pytest.mark.parametrize(
    ("call", "status"),
    [
        ("cuStreamBeginCapture", CUresult.CUDA_ERROR_UNKNOWN),
        ("cuStreamEndCapture", CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED),
        ("cuGraphInstantiate", CUresult.CUDA_ERROR_OUT_OF_MEMORY),
    ],
)
def test_a_plan_that_cannot_be_captured_is_launched_each_time(fake, call, status):
    backend, plan = chain(CudaDevice(CudaGPU(0)))
    fake.fails[call] = status
    backend.compute(plan)
    fake.calls.clear()
    backend.compute(plan)
    assert status.name in plan.unnoted and plan.graph is None
    assert len(fake.named("cuGraphDestroy")) == (call == "cuGraphInstantiate"), "the noted graph is left over"
    fake.calls.clear()
    backend.compute(plan)
    assert len(fake.named("cuLaunchKernelEx")) == 5 and not fake.named("cuStreamBeginCapture")


def test_the_first_failure_within_a_capture_is_the_one_that_is_told(fake):
    backend, plan = chain(CudaDevice(CudaGPU(0)))
    backend.compute(plan)
    fake.fails["cuLaunchKernelEx"] = CUresult.CUDA_ERROR_LAUNCH_FAILED
    fake.fails["cuStreamEndCapture"] = CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
    with pytest.raises(DeviceError, match=r"launching .* CUDA_ERROR_LAUNCH_FAILED"):
        backend.compute(plan)


# ---- memory


def test_buffers_begin_zeroed(fake):
    """Memory comes from the driver as its last user left it: another client of a server, it may be."""
    device = CudaDevice(CudaGPU(0))
    t = Tensor(GGMLType.I8, (40,))
    device.alloc_buffer(40).place(t, 0)
    assert t.buffer.get(t) == bytes(40)


def test_memory_of_lost_plans_is_freed_before_memory_is_refused(fake):
    device = CudaDevice(CudaGPU(0))
    backend, plan = chain(device)
    fake.most = len(fake.memory)
    with pytest.raises(DeviceError, match="Fake 0: cannot allocate 64 bytes, 1073741824 are free"):
        device.alloc_buffer(64)
    held = plan.memory
    del plan
    device.alloc_buffer(64)
    assert held not in fake.memory
    with pytest.raises(DeviceError, match="cannot allocate 64 bytes"):
        device.alloc_buffer(64)
    backend.close()


# ---- kernels


def test_one_client_computes_while_a_kernel_of_another_is_compiled(fake, monkeypatch):
    """The GPU's lock is free meanwhile."""
    device = CudaDevice(CudaGPU(0))
    compiling, go_on, done = threading.Event(), threading.Event(), []

    def slow(spec, cc):
        compiling.set()
        assert go_on.wait(60)
        return b"machine code"

    monkeypatch.setattr(compiled, "cubin", slow)
    thread = threading.Thread(target=lambda: done.append(chain(device)))
    thread.start()
    assert compiling.wait(60)
    device.memory()
    device.alloc_buffer(64).free()
    go_on.set()
    thread.join()
    assert len(done) == 1 and len(fake.named("cuModuleLoadData")) == 1


def test_a_kernel_that_the_driver_refuses_is_named(fake):
    fake.fails["cuModuleLoadData"] = CUresult.CUDA_ERROR_INVALID_IMAGE
    with pytest.raises(DeviceError, match="loading kernel unary-scale: CUDA_ERROR_INVALID_IMAGE"):
        chain(CudaDevice(CudaGPU(0)))


def test_a_compiler_that_fails_is_told_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("PYGGML_CACHE", str(tmp_path))
    broken = types.ModuleType("build")

    def code(spec, cc):
        raise RuntimeError("libdevice is nowhere\nlooked in 9 folders")

    broken.code = code
    monkeypatch.setitem(sys.modules, "pyggml.kernels.cuda.device.build", broken)
    monkeypatch.setattr("pyggml.kernels.cuda.device.build", broken, raising=False)
    with pytest.raises(DeviceError) as told:
        compiled.cubin(Spec("unary", "scale"), (9, 0))
    assert str(told.value) == (
        "kernel unary-scale cannot be compiled for compute capability 9.0: RuntimeError: libdevice is nowhere"
    )


# ---- models over two GPUs


def held_elsewhere(fake, plan, context: str) -> list[int]:
    """Words of a plan's launches that are addresses of another GPU's memory."""
    others = [(at, at + block.size) for at, block in fake.memory.items() if block.context not in (None, context)]
    return [word for word in plan.values.tolist() for low, high in others if low <= word < high]


def test_a_model_over_two_gpus_in_two_threads(fake, tmp_path):
    """Nothing is computed there; what each GPU is asked for is its own, direct, captured and replayed."""
    from tiny_model import write_llama

    from pyggml.backend.cuda.plan import CudaPlan
    from pyggml.model.model import Model
    from pyggml.runtime.context import Context

    path = write_llama(tmp_path / "m.gguf", n_layer=6)
    gpus = [CudaDevice(CudaGPU(number)) for number in range(2)]

    def client(seed: int) -> None:
        model = Model.load(path, devices=gpus, n_gpu_layers=99)
        context = Context(model, n_ctx=256, n_threads=1)
        context.decode([seed, 1, 2, 3, 4, 5, 6])
        for _ in range(3):
            context.decode([seed])
        splits = [split for _, schedule in context._schedules.values() for split in schedule.splits]
        plans = [split.plan for split in splits if isinstance(split.plan, CudaPlan)]
        assert {plan.gpu.number for plan in plans} == {0, 1}
        assert sum(plan.graph is not None for plan in plans) == 2, "the token's, on both"
        for plan in plans:
            assert not held_elsewhere(fake, plan, f"context {plan.gpu.number}")
            assert any(held_elsewhere(fake, plan, f"context {1 - plan.gpu.number}"))
        context.close()
        model.close()

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(client, seed) for seed in (7, 8)]:
            done.result()
    for gpu in gpus:
        gpu.free_retired()
        launched = [call for call in fake.named("cuLaunchKernelEx") if call.context == f"context {gpu.gpu.number}"]
        assert launched and len(fake.named("cuGraphLaunch")) == 8
    left = [block for block in fake.memory.values() if block.context is not None]
    assert not left, f"{len(left)} blocks are left over"
