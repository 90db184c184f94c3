"""Clients of one server: some hang up while their graph is computed, others have small graphs that one thread computes."""

import random
import threading
import time
from dataclasses import dataclass

import numpy as np
from pyggml_rpc.backend import RpcDevice
from pyggml_rpc.client import Client
from pyggml_rpc.errors import RpcError

from pyggml import ops
from pyggml.backend.base import Device
from pyggml.dtypes import GGMLType
from pyggml.graph import build_forward
from pyggml.tensor import Tensor

WAIT = 60.0  # seconds in which an answer must come, however busy the machine is


def placed(device: Device, *tensors: Tensor) -> None:
    """Gives each of them a place in one buffer."""
    sizes = [-(-t.nbytes // 128) * 128 for t in tensors]
    buffer, at = device.alloc_buffer(sum(sizes)), 0
    for t, size in zip(tensors, sizes, strict=True):
        buffer.place(t, at)
        at += size


def device_at(endpoint: str) -> RpcDevice:
    return RpcDevice(Client(endpoint, 5, WAIT, WAIT), 0, "RPC0")


@dataclass
class Tally:
    hang_ups: int = 0
    sums: int = 0


def hang_up(endpoint: str, rng: random.Random) -> None:
    """A chain of products that takes all threads some milliseconds, and gone is the client."""
    device = device_at(endpoint)
    a = Tensor(GGMLType.F32, (128, 128))
    chain = [a]
    for _ in range(57):
        chain.append(ops.mul_mat(a, chain[-1]))
    placed(device, *chain)
    backend = device.open()
    backend.compute(backend.plan(build_forward([chain[-1]])))
    backend.flush()
    time.sleep(rng.uniform(0, 0.02))
    device.client.close()


def add(endpoint: str, until: float, tally: Tally) -> None:
    """Sixteen numbers are added again and again."""
    device = device_at(endpoint)
    a, b = Tensor(GGMLType.F32, (16,)), Tensor(GGMLType.F32, (16,))
    node = ops.add(a, b)
    placed(device, a, b, node)
    assert a.buffer is not None
    a.buffer.set(a, np.full(16, 1, np.float32).tobytes())
    a.buffer.set(b, np.full(16, 2, np.float32).tobytes())
    backend = device.open()
    plan = backend.plan(build_forward([node]))
    while time.monotonic() < until:
        a.buffer.set(node, bytes(64))
        backend.compute(plan)
        assert a.buffer.get(node) == np.full(16, 3, np.float32).tobytes()
        tally.sums += 1
    device.client.close()


def run(endpoint: str, seconds: float, seed: int) -> Tally:
    """Two that add and one that hangs up, for so long. Raises what went wrong in any of them."""
    until, tally, wrong = time.monotonic() + seconds, Tally(), list[BaseException]()

    def adds() -> None:
        try:
            add(endpoint, until, tally)
        except (RpcError, AssertionError) as error:
            wrong.append(error)

    threads = [threading.Thread(target=adds, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    rng = random.Random(seed)
    while time.monotonic() < until and not wrong:
        hang_up(endpoint, rng)
        tally.hang_ups += 1
    for thread in threads:
        thread.join(WAIT)
        assert not thread.is_alive(), "a client waits for ever"
    for error in wrong:
        raise error
    return tally
