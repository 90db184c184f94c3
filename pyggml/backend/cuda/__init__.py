"""The CUDA backend's devices, found without importing anything of CUDA where there is no NVIDIA driver.

Owns that order of looking; must not know how a device computes.
"""

from __future__ import annotations

from pyggml.backend.base import Device
from pyggml.backend.cuda.driver import HINT, CudaGPU, count, missing
from pyggml.errors import DeviceError

__all__ = ["HINT", "OLDEST", "cuda_devices", "why_no_cuda"]

OLDEST = (7, 5)
"""The compute capability that kernels are written for: libNVVM 13 knows no earlier one."""


def why_no_cuda() -> str | None:
    """Why this machine has no CUDA device, None = it has one (or more)."""
    reason = missing()
    if reason is not None:
        return reason
    try:
        return None if cuda_devices() else "there is no GPU of compute capability 7.5 or later"
    except DeviceError as error:
        return str(error)


def cuda_devices() -> list[Device]:
    """CUDA0, CUDA1 ...: the GPUs that CUDA_VISIBLE_DEVICES leaves and kernels can be made for."""
    if missing() is not None:
        return []
    from pyggml.backend.cuda.device import CudaDevice

    found = [CudaGPU(i) for i in range(count())]
    return [CudaDevice(gpu) for gpu in found if gpu.cc >= OLDEST]
