"""Schedulers of two devices and the CPU, for random layers (random_layers.py): GPUs that take notes, servers.

Owns which devices there are, by the names that tests have for them.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from pyggml_rpc.backend import devices_from_spec
from pyggml_rpc.server import Server
from pyggml_rpc.transport import Listener

from pyggml.backend.base import Device
from pyggml.backend.cpu import CPUDevice
from pyggml.backend.scheduler import Scheduler

DEVICES = ("two GPUs", "a GPU and the CPU", "a server and the CPU", "two devices of a server")


def recording(number: int) -> Device:
    pytest.importorskip("numba_cuda", reason="numba-cuda is not installed: pip install '.[cuda]'")
    from cuda_recording import RecordingGPU

    from pyggml.backend.cuda.device import CudaDevice

    return CudaDevice(RecordingGPU(number=number))


@contextmanager
def scheduler_of(name: str) -> Iterator[Scheduler]:
    """The devices of its name, and the CPU."""
    with Listener(Server([CPUDevice(), CPUDevice("CPU2")], n_threads=1), port=0) as listener:
        used = {
            "two GPUs": lambda: [recording(0), recording(1)],
            "a GPU and the CPU": lambda: [recording(0)],
            "a server and the CPU": lambda: devices_from_spec(listener.endpoint)[:1],
            "two devices of a server": lambda: devices_from_spec(listener.endpoint),
        }[name]()
        backends = [device.open() for device in (*used, CPUDevice())]
        made = Scheduler(backends)
        yield made
        made.close()
        for backend in backends:
            backend.close()
