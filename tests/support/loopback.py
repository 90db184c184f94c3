"""Our client on a server in this process, over real sockets."""

from typing import Any

import numpy as np
from pyggml_rpc.backend import RpcDevice, devices_from_spec
from pyggml_rpc.transport import Listener
from pyggml_rpc.wire import NEWEST, Command, pack

from pyggml import ops
from pyggml.backend.base import Usage
from pyggml.dtypes import GGMLType
from pyggml.graph import build_forward
from pyggml.tensor import Tensor


def framed(command: Command, **fields: Any) -> bytes:
    """A reply of 8.0.0 as it is sent."""
    layout = NEWEST[command].reply
    assert layout is not None
    return layout.itemsize.to_bytes(8, "little") + pack(layout, **fields)


def device_of(listener: Listener, **options: Any) -> RpcDevice:
    (device,) = devices_from_spec(listener.endpoint, **options)
    assert isinstance(device, RpcDevice)
    return device


class Adder:
    """out = a + b on an RPC device, ready to run."""

    def __init__(self, device: RpcDevice, n: int = 4) -> None:
        self.device = device
        self.a, self.b = (Tensor(GGMLType.F32, (n,), name=name) for name in "ab")
        self.out = ops.add(self.a, self.b, name="out")
        self.buffer = device.alloc_buffer(3 * 4 * n + 128, Usage.COMPUTE)
        for i, tensor in enumerate((self.a, self.b, self.out)):
            self.buffer.place(tensor, i * (4 * n + 63) // 64 * 64)
        self.backend = device.open()
        self.graph = build_forward([self.out])
        self.plan = self.backend.plan(self.graph)

    def run(self, a: float, b: float) -> float:
        n = self.a.ne[0]
        self.buffer.set(self.a, np.full(n, a, "<f4").tobytes())
        self.buffer.set(self.b, np.full(n, b, "<f4").tobytes())
        self.backend.compute(self.plan)
        values = np.frombuffer(self.buffer.get(self.out), "<f4")
        assert values.size == n and (values == values[0]).all()
        return float(values[0])

    def close(self) -> None:
        self.backend.close()
        self.buffer.free()
