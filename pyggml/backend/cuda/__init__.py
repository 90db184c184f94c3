"""The CUDA backend's devices, found without importing anything of CUDA where there is no NVIDIA driver.

Owns that order of looking.
"""

from __future__ import annotations

from pyggml.backend.base import Device
from pyggml.backend.cuda.driver import HINT, NO_DRIVER, CudaGPU, missing, start
from pyggml.errors import DeviceError

__all__ = ["HINT", "OLDEST", "cuda_devices", "why_no_cuda", "worth_telling"]

OLDEST = (7, 5)
"""The compute capability that kernels are written for: libNVVM 13 knows no earlier one."""


def why_no_cuda() -> str | None:
    """Why this machine has no CUDA device, None = it has one (or more)."""
    return _find()[1]


def cuda_devices() -> list[Device]:
    """CUDA0, CUDA1 ...: the GPUs that CUDA_VISIBLE_DEVICES leaves and kernels can be made for. Where the driver is missing,
    too old or does not start there are none, and `why_no_cuda` says why: whoever asks can compute on the CPU."""
    return _find()[0]


def worth_telling(reason: str) -> bool:
    """Whether something is to be repaired: not where there is no NVIDIA driver or no GPU that kernels could be made for."""
    return reason not in (NO_DRIVER, NO_GPU)


NO_GPU = f"there is no GPU of compute capability {OLDEST[0]}.{OLDEST[1]} or later"


def _find() -> tuple[list[Device], str | None]:
    reason = missing()
    if reason is not None:
        return [], reason
    from pyggml.backend.cuda.device import CudaDevice

    try:
        gpus = [CudaGPU(i) for i in range(start())]
    except DeviceError as error:
        return [], str(error)
    found: list[Device] = [CudaDevice(gpu) for gpu in gpus if gpu.cc >= OLDEST]
    return found, None if found else NO_GPU
