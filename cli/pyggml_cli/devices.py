"""Which devices a command may use: this machine's, and those of the servers it was told of.

Owns finding and naming them.
"""

import sys
from collections.abc import Sequence

from pyggml.backend.base import Device, extra_devices
from pyggml.errors import DeviceError

MIB = 1 << 20


def local_devices() -> list[Device]:
    """What this machine computes on: its CPU."""
    from pyggml.backend.cpu import CPUDevice

    return [CPUDevice()]


def gpu_devices() -> list[Device]:
    """This machine's GPUs. Where there is an NVIDIA driver and it cannot be used, a line on stderr says why."""
    from pyggml.backend.cuda import cuda_devices, why_no_cuda, worth_telling

    found = cuda_devices()
    if not found and (reason := why_no_cuda()) and worth_telling(reason):
        print(f"warning: {reason}", file=sys.stderr)
    return found


def offload_devices(
    rpc: str | None, names: Sequence[str] | None = None, rpc_timeout: float | None = None
) -> list[Device]:
    """Devices that layers can be offloaded to, servers first: all, or those named in this order; ["none"] are none.

    `rpc_timeout`: seconds for a server's answer; None: the client's default. Connects to the servers. Raises DeviceError, and RpcError for a server that does not answer.
    """
    if names is not None and list(names) == ["none"]:
        return []
    times = {} if rpc_timeout is None else {"io_timeout": rpc_timeout}
    found = [*(extra_devices("rpc", rpc, **times) if rpc else []), *gpu_devices()]
    if names is None:
        return found
    return pick(found, names)


def note_no_offload(n_gpu_layers: int, devices: Sequence[Device]) -> None:
    """Where the user has asked for layers on other devices than this CPU, and there are none: say so, and why."""
    if n_gpu_layers and not devices:
        why = _why_no_gpu()
        reason = f": {why}" if why else ""
        asked = "all" if n_gpu_layers < 0 else n_gpu_layers
        print(f"note: -ngl {asked}: all layers are computed on the CPU{reason}", file=sys.stderr)


def _why_no_gpu() -> str | None:
    """None where this machine has a GPU to compute on."""
    from pyggml.backend.cuda import why_no_cuda

    return why_no_cuda()


def pick(devices: Sequence[Device], names: Sequence[str]) -> list[Device]:
    """The devices of these names (any case), in this order. Raises DeviceError."""
    by_name = {device.name.lower(): device for device in devices}
    for name in names:
        if name.lower() not in by_name:
            there = ", ".join(device.name for device in devices) or "none"
            why = f" ({reason})" if name.upper().startswith("CUDA") and (reason := _why_no_gpu()) else ""
            raise DeviceError(f"unknown device {name!r}; available: {there}{why}")
        if [other.lower() for other in names].count(name.lower()) > 1:
            raise DeviceError(f"device {name!r} is named twice")
    return [by_name[name.lower()] for name in names]


def holder(devices: Sequence[Device], name: str) -> Device:
    """The device of this name, or whose memory llama.cpp calls so: RPC0[host:port] is the first device of that server, whatever
    its name here. Raises DeviceError."""
    for device in devices:
        if device.memory_name and device.memory_name.lower() == name.lower():
            return device
    return pick(devices, [name])[0]


def describe(device: Device) -> str:
    """llama.cpp's line of a device: name, description, memory."""
    free, total = device.memory()
    return f"{device.name}: {device.description} ({total // MIB} MiB, {free // MIB} MiB free)"


def listing(devices: Sequence[Device]) -> str:
    """What --list-devices prints."""
    return "\n".join(["Available devices:", *(f"  {describe(device)}" for device in devices)])
