"""The CUDA driver through `cuda.bindings`: devices, memory, one stream, launches, graphs. The only file that calls it.

Owns every call of the driver and the errors they end in; must not know tensors, kernels or plans. `GPU` is also the
interface that the emulated driver of the tests has.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import sys
import threading
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pyggml.backend.cuda.toolkit import DRIVERS, toolkit
from pyggml.errors import DeviceError
from pyggml.kernels.cuda.spec import EARLY, Spec

Grid = tuple[int, int, int]


class GPU(Protocol):
    """One GPU and its one stream, on which everything happens in the order of the calls.

    cc              compute capability
    multiprocessors how many there are
    shared_limit    bytes of shared memory that a block may have
    lost            why nothing can be computed here any more, None = all is well; then what is given back is not looked at
    """

    number: int
    name: str
    cc: tuple[int, int]
    multiprocessors: int
    shared_limit: int
    lost: str | None

    def memory(self) -> tuple[int, int]:
        """Bytes (free, total); none are free where all is lost."""

    def alloc(self, size: int) -> int:
        """Address of `size` bytes, a multiple of 256. Raises DeviceError."""

    def free(self, address: int) -> None:
        """Give them back; waits for what uses them."""

    def pin(self, size: int) -> NDArray[np.uint8]:
        """Host memory that the GPU reads and writes by itself. Raises DeviceError."""

    def unpin(self, memory: NDArray[np.uint8]) -> None: ...

    def upload(self, to: int, source: int, size: int) -> None:
        """From pinned host memory; returns at once."""

    def download(self, to: int, source: int, size: int) -> None:
        """To pinned host memory; returns at once."""

    def copy(self, to: int, source: int, size: int) -> None:
        """Within the GPU; returns at once."""

    def fill(self, to: int, value: int, size: int) -> None:
        """All bytes become `value`; returns at once."""

    def event(self) -> Any:
        """A mark to set in the stream and to wait for."""

    def record(self, event: Any) -> None:
        """Set the mark behind all that was asked for so far."""

    def wait(self, event: Any) -> None:
        """Return when the stream has passed the mark; at once where it was never set."""

    def synchronize(self) -> None:
        """Return when all that was asked for has happened. Raises DeviceError for what went wrong meanwhile."""

    def load(self, spec: Spec) -> Any:
        """A kernel made ready for this GPU; from any thread, without a lock. Raises DeviceError."""

    def prepare(self, kernel: Any, shared: int) -> None:
        """Let its blocks have so many bytes of shared memory."""

    def launch(self, kernel: Any, grid: Grid, threads: int, shared: int, parameters: int) -> None:
        """`parameters`: address of an array of addresses, one a parameter; both stay in place while graphs hold them."""

    def begin_capture(self) -> None:
        """Launches from here on are noted instead of run."""

    def end_capture(self) -> Any:
        """The graph of what was noted."""

    def replay(self, graph: Any) -> None:
        """Run what was noted; returns at once."""

    def drop(self, graph: Any) -> None: ...

    def close(self) -> None: ...


HINT = "pip install 'pyggml[cuda]'"
LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
NO_DRIVER = f"there is no NVIDIA driver ({LIBRARY})"


def missing() -> str | None:
    """Why there is no CUDA here, None = there may be. Looks for the driver's library before it imports anything."""
    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        return NO_DRIVER
    if importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.bindings") is None:
        return f"an NVIDIA driver is installed, its Python interface is not: {HINT}"
    return None


@functools.cache
def _driver() -> Any:
    from cuda.bindings import driver

    return driver


def _checked(result: Any, what: str) -> Any:
    """The values behind the status. Raises DeviceError in one line."""
    status, *values = result
    if int(status) != 0:
        raise DeviceError(f"CUDA: {what}: {status.name}")
    return values[0] if len(values) == 1 else values


def start() -> int:
    """GPUs that CUDA_VISIBLE_DEVICES leaves. Raises DeviceError when the driver does not start or cannot run our kernels."""
    try:
        driver = _driver()
        status = driver.cuInit(0)[0]
    except Exception as error:  # a library of another version, or one that it needs and does not find
        said = str(error).strip().partition("\n")[0]
        raise DeviceError(f"CUDA: the Python interface does not start: {type(error).__name__}: {said}") from None
    if status == driver.CUresult.CUDA_ERROR_NO_DEVICE:
        return 0
    _checked((status,), "the driver does not start")
    version, needed = int(_checked(driver.cuDriverGetVersion(), "version")), toolkit()
    if version < 1000 * needed:
        has, first = f"{version // 1000}.{version % 1000 // 10}", DRIVERS.get(needed, "a newer driver")
        other = "; pip install 'pyggml[cuda12]' makes kernels for CUDA 12" if needed > 12 and version >= 12000 else ""
        raise DeviceError(
            f"CUDA: the NVIDIA driver supports CUDA {has}; {needed}.0 is needed, which {first} brings{other}"
        )
    return int(_checked(driver.cuDeviceGetCount(), "counting devices"))


STICKY = {
    f"CUDA_ERROR_{name}"
    for name in (
        *("DEINITIALIZED", "DEVICE_UNAVAILABLE", "ECC_UNCORRECTABLE", "NVLINK_UNCORRECTABLE", "CONTAINED"),
        *("ILLEGAL_ADDRESS", "LAUNCH_TIMEOUT", "CONTEXT_IS_DESTROYED", "ASSERT", "HARDWARE_STACK_ERROR"),
        *("ILLEGAL_INSTRUCTION", "MISALIGNED_ADDRESS", "INVALID_ADDRESS_SPACE", "INVALID_PC", "LAUNCH_FAILED"),
        *("TENSOR_MEMORY_LEAK", "EXTERNAL_DEVICE"),
    )
}
"""After one of these every later call of the process fails, whatever it asks for (cuda.h: "the process must be
terminated and relaunched")."""


_CC_MAJOR, _CC_MINOR, _MULTIPROCESSORS, _SHARED_OPTIN = 75, 76, 16, 97
_SHARED_ATTRIBUTE = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
EARLY_FROM = 12030
"""Drivers from this version on note launches that begin early in graphs, too."""
MOST_LAUNCHES = 4096
"""Forms of launches that are kept."""
PLAIN_SHARED = 48 * 1024
"""A block may have so many bytes of shared memory without asking."""
PIECE = 16
"""Memory is taken in pieces of so many bytes: kernels copy whole ones, of which the last may end behind a buffer."""


class CudaGPU:
    """See GPU. The primary context of the device, which other libraries of this process share."""

    def __init__(self, number: int) -> None:
        d = _driver()
        self.number = number
        self.device = _checked(d.cuDeviceGet(number), f"device {number}")
        self.name = _checked(d.cuDeviceGetName(128, self.device), "name").split(b"\0")[0].decode(errors="replace")
        self.cc = self._attribute(_CC_MAJOR), self._attribute(_CC_MINOR)
        self.multiprocessors = self._attribute(_MULTIPROCESSORS)
        self.shared_limit = self._attribute(_SHARED_OPTIN)
        self._total = int(_checked(d.cuDeviceTotalMem(self.device), "total memory"))
        self.lost: str | None = None
        self._context: Any = None
        self._stream: Any = None
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        self._functions: dict[Spec, Any] = {}
        version = int(_checked(d.cuDriverGetVersion(), "version"))
        self._early = self.cc >= EARLY and version >= EARLY_FROM and os.environ.get("PYGGML_EARLY_LAUNCH") != "0"
        self._launches: dict[tuple[Grid, int, int], Any] = {}  # how kernels are launched, by their sizes

    def _attribute(self, which: int) -> int:
        d = _driver()
        return int(_checked(d.cuDeviceGetAttribute(d.CUdevice_attribute(which), self.device), f"attribute {which}"))

    def _ok(self, result: Any, what: str) -> Any:
        """_checked for calls of this GPU's context, which learns here that it is lost."""
        if int(result[0]) == 0:
            return _checked(result, what)
        if result[0].name in STICKY and self.lost is None:
            self.lost = f"{self.name} cannot be used any more after {result[0].name}: start this program again"
        return _checked(result, what)

    def _d(self) -> Any:
        """The driver, with this device's context current in the calling thread. Made on first use: it takes memory.

        It is made current each time, which takes 0.1 us: another GPU of ours, or another library, may have changed it.
        """
        if self.lost is not None:
            raise DeviceError(self.lost)
        d = _driver()
        if self._context is None:
            with self._lock:
                if self._context is None:
                    context = self._ok(d.cuDevicePrimaryCtxRetain(self.device), f"opening {self.name}")
                    self._ok(d.cuCtxSetCurrent(context), "context")
                    flags = d.CUstream_flags.CU_STREAM_NON_BLOCKING
                    self._stream = self._ok(d.cuStreamCreate(flags), "stream")
                    self._context = context
        self._ok(d.cuCtxSetCurrent(self._context), "context")
        return d

    def memory(self) -> tuple[int, int]:
        if self.lost is not None:
            return 0, self._total
        free, total = self._ok(self._d().cuMemGetInfo(), "memory")
        return int(free), int(total)

    def alloc(self, size: int) -> int:
        d = self._d()
        result = d.cuMemAlloc(max(-(-size // PIECE) * PIECE, 1))
        if result[0] == d.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            raise DeviceError(f"{self.name}: cannot allocate {size} bytes, {self.memory()[0]} are free")
        return int(self._ok(result, f"allocating {size} bytes"))

    def free(self, address: int) -> None:
        if self.lost is None:
            d = self._d()
            self._ok(d.cuStreamSynchronize(self._stream), "waiting")
            self._ok(d.cuMemFree(address), "freeing memory")

    def pin(self, size: int) -> NDArray[np.uint8]:
        address = int(self._ok(self._d().cuMemHostAlloc(size, 1), f"pinning {size} bytes"))  # 1: for all contexts
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def unpin(self, memory: NDArray[np.uint8]) -> None:
        if self.lost is None:
            self._ok(self._d().cuMemFreeHost(memory.ctypes.data), "unpinning memory")

    def upload(self, to: int, source: int, size: int) -> None:
        self._ok(self._d().cuMemcpyHtoDAsync(to, source, size, self._stream), f"copying {size} bytes to {self.name}")

    def download(self, to: int, source: int, size: int) -> None:
        self._ok(self._d().cuMemcpyDtoHAsync(to, source, size, self._stream), f"copying {size} bytes from {self.name}")

    def copy(self, to: int, source: int, size: int) -> None:
        self._ok(self._d().cuMemcpyDtoDAsync(to, source, size, self._stream), f"copying {size} bytes")

    def fill(self, to: int, value: int, size: int) -> None:
        self._ok(self._d().cuMemsetD8Async(to, value, size, self._stream), f"filling {size} bytes")

    def event(self) -> Any:
        return self._ok(self._d().cuEventCreate(2), "event")  # 2: without a clock

    def record(self, event: Any) -> None:
        self._ok(self._d().cuEventRecord(event, self._stream), "event")

    def wait(self, event: Any) -> None:
        self._ok(self._d().cuEventSynchronize(event), f"{self.name} failed")

    def synchronize(self) -> None:
        self._ok(self._d().cuStreamSynchronize(self._stream), f"{self.name} failed")

    # ---- kernels

    def load(self, spec: Spec) -> Any:
        found = self._functions.get(spec)
        if found is None:
            from pyggml.backend.cuda.compiled import ENTRY, cubin

            with self._loading:
                if spec not in self._functions:
                    image = cubin(spec, self.cc)
                    d = self._d()
                    module = self._ok(d.cuModuleLoadData(image), f"loading kernel {spec.label}")
                    self._functions[spec] = self._ok(d.cuModuleGetFunction(module, ENTRY), f"kernel {spec.label}")
                found = self._functions[spec]
        return found

    def prepare(self, kernel: Any, shared: int) -> None:
        if shared > PLAIN_SHARED:
            d = self._d()
            attribute = d.CUfunction_attribute(_SHARED_ATTRIBUTE)
            self._ok(d.cuFuncSetAttribute(kernel, attribute, shared), f"{shared} bytes of shared memory a block")

    def launch(self, kernel: Any, grid: Grid, threads: int, shared: int, parameters: int) -> None:
        d = self._d()
        if self._early:
            status = d.cuLaunchKernelEx(self._how(grid, threads, shared), kernel, parameters, 0)
        else:
            status = d.cuLaunchKernel(kernel, *grid, threads, 1, 1, shared, self._stream, parameters, 0)
        if status[0]:
            self._ok(status, f"launching {grid} blocks of {threads} threads")

    def _how(self, grid: Grid, threads: int, shared: int) -> Any:
        """A launch that may begin before the kernel ahead of it has ended, for which all kernels wait by themselves."""
        found = self._launches.get((grid, threads, shared))
        if found is None:
            d = _driver()
            attribute = d.CUlaunchAttribute()
            attribute.id = d.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
            attribute.value.programmaticStreamSerializationAllowed = 1
            found = d.CUlaunchConfig()
            found.gridDimX, found.gridDimY, found.gridDimZ = grid
            found.blockDimX, found.blockDimY, found.blockDimZ = threads, 1, 1
            found.sharedMemBytes, found.hStream = shared, self._stream
            found.attrs, found.numAttrs = [attribute], 1
            if len(self._launches) >= MOST_LAUNCHES:
                self._launches.clear()
            self._launches[grid, threads, shared] = found
        return found

    def begin_capture(self) -> None:
        d = self._d()
        mode = d.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._ok(d.cuStreamBeginCapture(self._stream, mode), "noting a graph")

    def end_capture(self) -> Any:
        d = self._d()
        graph = self._ok(d.cuStreamEndCapture(self._stream), "noting a graph")
        try:
            return self._ok(d.cuGraphInstantiate(graph, 0), "making a graph ready")
        finally:
            self._ok(d.cuGraphDestroy(graph), "a graph")

    def replay(self, graph: Any) -> None:
        self._ok(self._d().cuGraphLaunch(graph, self._stream), "launching a graph")

    def drop(self, graph: Any) -> None:
        if self.lost is None:
            d = self._d()
            self._ok(d.cuStreamSynchronize(self._stream), "waiting")
            self._ok(d.cuGraphExecDestroy(graph), "a graph")

    def close(self) -> None:
        """Nothing: the context lives as long as the process, plans and buffers hold addresses in it."""
