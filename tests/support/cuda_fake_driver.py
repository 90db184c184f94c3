"""`cuda.bindings.driver` without a GPU: notes each call with the context that is current, fails where it is told to, runs
no kernel. Owns what the driver keeps for a thread, a context and a process, and what it refuses: a handle or an address of
another context, one that was given back, whatever a capture forbids, all of a context that was lost."""

import ctypes
import threading
from collections.abc import Callable
from enum import IntEnum
from types import SimpleNamespace
from typing import Any, NamedTuple

from pyggml.backend.cuda.driver import STICKY

CODES = {
    "INVALID_VALUE": 1, "OUT_OF_MEMORY": 2, "DEINITIALIZED": 4, "STUB_LIBRARY": 34, "DEVICE_UNAVAILABLE": 46,
    "NO_DEVICE": 100, "INVALID_IMAGE": 200, "INVALID_CONTEXT": 201, "NO_BINARY_FOR_GPU": 209, "ECC_UNCORRECTABLE": 214,
    "NVLINK_UNCORRECTABLE": 220, "JIT_COMPILER_NOT_FOUND": 221, "UNSUPPORTED_PTX_VERSION": 222, "CONTAINED": 226,
    "OPERATING_SYSTEM": 304, "INVALID_HANDLE": 400, "ILLEGAL_ADDRESS": 700, "LAUNCH_OUT_OF_RESOURCES": 701,
    "LAUNCH_TIMEOUT": 702, "CONTEXT_IS_DESTROYED": 709, "ASSERT": 710, "HARDWARE_STACK_ERROR": 714,
    "ILLEGAL_INSTRUCTION": 715, "MISALIGNED_ADDRESS": 716, "INVALID_ADDRESS_SPACE": 717, "INVALID_PC": 718,
    "LAUNCH_FAILED": 719, "TENSOR_MEMORY_LEAK": 721, "SYSTEM_NOT_READY": 802, "SYSTEM_DRIVER_MISMATCH": 803,
    "STREAM_CAPTURE_UNSUPPORTED": 900, "STREAM_CAPTURE_INVALIDATED": 901, "EXTERNAL_DEVICE": 911, "UNKNOWN": 999,
}  # fmt: skip
CUresult = IntEnum("CUresult", {"CUDA_SUCCESS": 0, **{f"CUDA_ERROR_{name}": code for name, code in CODES.items()}})
OK = CUresult.CUDA_SUCCESS

WITHOUT_CONTEXT = ("cuInit", "cuDriver", "cuDevice", "cuCtxSetCurrent")
MAKES = {
    "cuStreamCreate": "stream", "cuEventCreate": "event", "cuModuleLoadData": "module",
    "cuModuleGetFunction": "function", "cuStreamEndCapture": "graph", "cuGraphInstantiate": "executable",
}  # fmt: skip
TAKES = {
    "cuStreamSynchronize": ("stream",), "cuEventSynchronize": ("event",), "cuEventRecord": ("event", "stream"),
    "cuModuleGetFunction": ("module",), "cuFuncSetAttribute": ("function",), "cuLaunchKernel": ("function", "stream"),
    "cuLaunchKernelEx": ("stream", "function"),
    "cuStreamBeginCapture": ("stream",), "cuStreamEndCapture": ("stream",), "cuGraphInstantiate": ("graph",),
    "cuGraphDestroy": ("graph",), "cuGraphLaunch": ("executable", "stream"), "cuGraphExecDestroy": ("executable",),
    "cuMemcpyHtoDAsync": ("stream",), "cuMemcpyDtoHAsync": ("stream",), "cuMemcpyDtoDAsync": ("stream",),
    "cuMemsetD8Async": ("stream",),
}  # fmt: skip
"""The handles among a call's arguments, in order."""
SPANS = {
    "cuMemcpyHtoDAsync": ((0, "device"), (1, "host")), "cuMemcpyDtoHAsync": ((0, "host"), (1, "device")),
    "cuMemcpyDtoDAsync": ((0, "device"), (1, "device")), "cuMemsetD8Async": ((0, "device"),),
}  # fmt: skip
"""The addresses among a call's arguments; argument 2 says how many bytes lie there."""
NOT_CAPTURED = {
    "cuMemAlloc", "cuMemHostAlloc", "cuMemFree", "cuMemFreeHost", "cuStreamSynchronize", "cuEventSynchronize",
    "cuModuleLoadData", "cuMemGetInfo",
}  # fmt: skip
"""What a thread may not ask for while it captures (cuThreadExchangeStreamCaptureMode)."""


class Call(NamedTuple):
    name: str
    context: Any
    args: tuple[Any, ...]
    thread: int


class Handle:
    """A stream, a graph ...: of one context, until it is destroyed."""

    def __init__(self, kind: str, context: Any) -> None:
        self.kind, self.context, self.destroyed = kind, context, False

    def __repr__(self) -> str:
        return f"a {'destroyed ' * self.destroyed}{self.kind} of {self.context}"


class Block(NamedTuple):
    """`context` None: pinned memory of the host, which all contexts know."""

    memory: Any
    size: int
    context: Any


class FakeDriver:
    """`n` GPUs, with memory for `most` allocations at once, which comes as its last user left it.

    fails   names of calls and the status that each answers from now on; `fail` sets one for a number of times
    calls   what was asked
    wrong   what no program may ask, in words: each is answered as the driver would, and refused
    lost    contexts that a status has poisoned: every call in one of them answers that
    """

    CUresult = CUresult
    CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING=1)
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1)
    CUdevice_attribute = CUfunction_attribute = int
    CUlaunchAttributeID = SimpleNamespace(CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION=6)
    CUlaunchConfig = SimpleNamespace
    cc = (9, 0)

    @staticmethod
    def CUlaunchAttribute() -> SimpleNamespace:
        return SimpleNamespace(value=SimpleNamespace())

    def __init__(self, n: int = 1, version: int = 13000) -> None:
        self.n, self.version, self.most = n, version, 1000
        self.fails: dict[str, CUresult] = {}
        self.calls: list[Call] = []
        self.wrong: list[str] = []
        self.lost: dict[Any, CUresult] = {}
        self.memory: dict[int, Block] = {}
        self.thread = threading.local()  # context: the current one; captures: the stream that it captures
        self._times: dict[str, int] = {}

    def named(self, name: str) -> list[Call]:
        return [call for call in self.calls if call.name == name]

    def fail(self, name: str, code: str, times: int | None = None) -> None:
        """Answer `name` with CUDA_ERROR_`code`, the next `times` times (None: for ever)."""
        self.fails[name] = CUresult[f"CUDA_ERROR_{code}"]
        if times is not None:
            self._times[name] = times

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
        if not name.startswith("cu"):
            raise AttributeError(name)
        return lambda *args: self._call(name, args)

    def _call(self, name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        context = getattr(self.thread, "context", None)
        self.calls.append(Call(name, context, args, threading.get_ident()))
        if name == "cuStreamEndCapture":
            self.thread.captures = None  # whatever becomes of it
        status = self._refusal(name, context, args) or self._failure(name, context)
        if status:
            return status, None
        return OK, *self._answer(name, context, args)

    def _failure(self, name: str, context: Any) -> CUresult | None:
        """What the test asked for."""
        if name == "cuMemAlloc" and len(self.memory) >= self.most:
            return CUresult.CUDA_ERROR_OUT_OF_MEMORY
        status = self.fails.get(name)
        if status is None:
            return None
        if name in self._times:
            self._times[name] -= 1
            if not self._times[name]:
                del self._times[name], self.fails[name]
        if status.name in STICKY and not name.startswith(WITHOUT_CONTEXT):
            self.lost[context] = status
        return status

    def _refusal(self, name: str, context: Any, args: tuple[Any, ...]) -> CUresult | None:
        """What the driver does not do for anyone."""
        if name.startswith(WITHOUT_CONTEXT):
            return None
        if context in self.lost:
            return self.lost[context]
        if context is None:
            return self._misuse(CUresult.CUDA_ERROR_INVALID_CONTEXT, f"{name}: no context is current")
        given = (args[0].hStream, *args[1:]) if name == "cuLaunchKernelEx" else args
        handles = tuple(arg for arg in given if isinstance(arg, Handle))
        if tuple(handle.kind for handle in handles) != TAKES.get(name, ()):
            return self._misuse(CUresult.CUDA_ERROR_INVALID_HANDLE, f"{name}: {handles}, not {TAKES.get(name, ())}")
        for handle in handles:
            if handle.context != context or handle.destroyed:
                return self._misuse(CUresult.CUDA_ERROR_INVALID_HANDLE, f"{name} in {context}: {handle}")
        for i, kind in SPANS.get(name, ()):
            if not self._holds(args[i], args[2], None if kind == "host" else context):
                what = f"{name} in {context}: {args[2]} bytes at {args[i]:#x} are no {kind} memory of it"
                return self._misuse(CUresult.CUDA_ERROR_INVALID_VALUE, what)
        if name in ("cuMemFree", "cuMemFreeHost"):
            block = self.memory.get(args[0])
            if block is None or block.context != (context if name == "cuMemFree" else None):
                return self._misuse(CUresult.CUDA_ERROR_INVALID_VALUE, f"{name} in {context}: {args[0]:#x}")
        if name in NOT_CAPTURED and getattr(self.thread, "captures", None) is not None:
            return self._misuse(CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, f"{name} while a graph is captured")
        return None

    def _misuse(self, status: CUresult, what: str) -> CUresult:
        self.wrong.append(what)
        return status

    def _holds(self, address: int, size: int, context: Any) -> bool:
        return any(
            block.context == context and at <= address and address + size <= at + block.size
            for at, block in list(self.memory.items())
        )

    def _answer(self, name: str, context: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        match name:
            case "cuDeviceGetCount":
                return (self.n,)
            case "cuDriverGetVersion":
                return (self.version,)
            case "cuDeviceGetName":
                return (f"Fake {args[1]}".encode() + b"\0",)
            case "cuDeviceGet":
                return (args[0],)
            case "cuDeviceGetAttribute":
                return ({75: self.cc[0], 76: self.cc[1], 16: 132, 97: 232448}[args[0]],)
            case "cuDevicePrimaryCtxRetain":
                return (f"context {args[0]}",)
            case "cuCtxSetCurrent":
                self.thread.context = args[0]
            case "cuDeviceTotalMem":
                return (1 << 30,)
            case "cuMemGetInfo":
                return (1 << 30, 1 << 30)
            case "cuMemAlloc" | "cuMemHostAlloc":
                memory = ctypes.create_string_buffer(b"secret" * (args[0] // 6 + 50))
                address = -(-ctypes.addressof(memory) // 256) * 256
                self.memory[address] = Block(memory, args[0], context if name == "cuMemAlloc" else None)
                return (address,)
            case "cuMemFree" | "cuMemFreeHost":
                del self.memory[args[0]]
            case "cuMemsetD8Async":
                ctypes.memset(*args[:3])
            case "cuMemcpyHtoDAsync" | "cuMemcpyDtoHAsync" | "cuMemcpyDtoDAsync":
                ctypes.memmove(*args[:3])
            case "cuStreamBeginCapture":
                self.thread.captures = args[0]
            case "cuGraphDestroy" | "cuGraphExecDestroy":
                args[0].destroyed = True
        return (Handle(MAKES[name], context),) if name in MAKES else ()
