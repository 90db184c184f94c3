"""`cuda.bindings.driver` without a GPU: notes each call with the context that is current, fails where it is told to,
runs nothing. Owns what the driver keeps for a thread and a process."""

import ctypes
import threading
from collections.abc import Callable
from enum import IntEnum
from types import SimpleNamespace
from typing import Any, NamedTuple

CUresult = IntEnum(
    "CUresult",
    {
        f"CUDA_ERROR_{name}" if value else name: value
        for name, value in (
            ("CUDA_SUCCESS", 0), ("OUT_OF_MEMORY", 2), ("STUB_LIBRARY", 34), ("NO_DEVICE", 100), ("INVALID_IMAGE", 200),
            ("ILLEGAL_ADDRESS", 700), ("LAUNCH_FAILED", 719), ("SYSTEM_DRIVER_MISMATCH", 803),
            ("STREAM_CAPTURE_INVALIDATED", 901), ("UNKNOWN", 999),
        )
    },
)  # fmt: skip


class Call(NamedTuple):
    name: str
    context: str | None
    args: tuple[Any, ...]


class FakeDriver:
    """`n` GPUs, with memory for so many allocations at once. `fails`: names of calls and the status that each answers from
    now on. `calls`: what was asked. Memory comes as its last user left it."""

    CUresult = CUresult
    CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING=1)
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1)
    CUdevice_attribute = CUfunction_attribute = int

    def __init__(self, n: int = 1, version: int = 13000) -> None:
        self.n, self.version, self.most = n, version, 1000
        self.fails: dict[str, CUresult] = {}
        self.calls: list[Call] = []
        self.memory: dict[int, Any] = {}
        self.current = threading.local()

    def named(self, name: str) -> list[Call]:
        return [call for call in self.calls if call.name == name]

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
        if not name.startswith("cu"):
            raise AttributeError(name)

        def call(*args: Any) -> tuple[Any, ...]:
            self.calls.append(Call(name, getattr(self.current, "context", None), args))
            if name == "cuMemAlloc" and len(self.memory) >= self.most:
                return CUresult.CUDA_ERROR_OUT_OF_MEMORY, None
            if name in self.fails:
                return self.fails[name], None
            return CUresult.CUDA_SUCCESS, *self._answer(name, args)

        return call

    def _answer(self, name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
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
                return ({75: 9, 76: 0, 16: 132, 97: 232448}[args[0]],)
            case "cuDevicePrimaryCtxRetain":
                return (f"context {args[0]}",)
            case "cuCtxSetCurrent":
                self.current.context = args[0]
            case "cuMemGetInfo":
                return (1 << 30, 1 << 30)
            case "cuMemAlloc" | "cuMemHostAlloc":
                block = ctypes.create_string_buffer(b"secret" * (args[0] // 6 + 50))
                address = -(-ctypes.addressof(block) // 256) * 256
                self.memory[address] = block
                return (address,)
            case "cuMemFree" | "cuMemFreeHost":
                del self.memory[args[0]]
            case "cuMemsetD8Async":
                ctypes.memset(*args[:3])
            case "cuMemcpyHtoDAsync" | "cuMemcpyDtoHAsync" | "cuMemcpyDtoDAsync":
                ctypes.memmove(*args[:3])
            case (
                "cuStreamCreate" | "cuEventCreate" | "cuModuleLoadData" | "cuModuleGetFunction" | "cuStreamEndCapture"
            ) | "cuGraphInstantiate":
                return (f"{name} {len(self.calls)}",)
        return ()
