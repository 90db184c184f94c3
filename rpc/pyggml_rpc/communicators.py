"""One client's communicators with other servers, a device at most one among all clients, and the sums over two servers.

It must not know a socket (`link.py`). Facts: ggml-rpc.cpp, `comm_init` and `comm_allreduce`.
"""

import logging
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pyggml.backend.host import HostBuffer
from pyggml.dtypes import GGMLType
from pyggml.quants.bf16 import bf16_to_f32, f32_to_bf16
from pyggml.tensor import Tensor, contiguous_strides
from pyggml_rpc.client_state import ClientState
from pyggml_rpc.comm import CommError, Ends
from pyggml_rpc.errors import RefusedError
from pyggml_rpc.wire import Record

log = logging.getLogger("pyggml.rpc")

WORLD = 2
AS_BF16 = 32_768  # F32 tensors of so many elements travel rounded


class Communicators:
    """One client's, by device."""

    def __init__(self, client: ClientState) -> None:
        self._client = client
        self._links: dict[int, Ends] = {}

    def join(self, request: Record) -> bool:
        """Whether there is a communicator now: a client can do without. Waits for the other rank."""
        device, rank, world, port = (int(request[field][0]) for field in ("device", "rank", "world", "port"))
        client = self._client
        server, who = client.server, client.peer
        if device in self._links:
            return True
        if device >= len(server.devices) or world != WORLD or rank >= world or server.join is None:
            return False
        if not server.devices[device].reserve(client):
            log.warning("%s: COMM_INIT: device %d has a communicator, of another client", who, device)
            return False
        host = bytes(request["host"][0]).decode("ascii", "replace")
        try:
            self._links[device] = server.join(rank, host, port, lambda: client.gone)
        except CommError as error:
            log.warning("%s: COMM_INIT: %s", who, error)
            return False
        finally:
            if device not in self._links:
                server.devices[device].reserve(None)
        log.info("%s: adds up with another server, as rank %d", who, rank)
        return True

    def allreduce(self, device: int, tensor: Tensor, stage: Callable[[int], None]) -> None:
        """The sum of both ranks' tensors in place of this one. `stage` counts memory. Raises RefusedError."""
        link = self._links.get(device)
        if link is None:
            raise RefusedError(f"device {device} has no communicator")
        if tensor.type not in (GGMLType.F32, GGMLType.F16, GGMLType.BF16):
            raise RefusedError(
                f"tensor {tensor.name!r}: sums of {tensor.type.name} are not supported (supported: F32, F16, BF16)"
            )
        if tensor.nb != contiguous_strides(tensor.type, tensor.ne):
            raise RefusedError(f"tensor {tensor.name!r}: its elements are not contiguous: {list(tensor.nb)}")
        if not tensor.nelements:
            return
        stage(4 * tensor.nbytes)
        buffer = tensor.buffer
        assert buffer is not None
        here = (
            buffer.bytes_of(tensor) if isinstance(buffer, HostBuffer) else np.frombuffer(buffer.get(tensor), np.uint8)
        )
        result = add_up(link, tensor.type, here)
        buffer.set(tensor, result.view(np.uint8).data)

    def leave(self, device: int) -> None:
        """End a device's communicator, if it has one."""
        link = self._links.pop(device, None)
        if link is not None:
            link.close()
            self._client.server.devices[device].reserve(None)

    def close(self) -> None:
        """End all."""
        for device in list(self._links):
            self.leave(device)


def add_up(link: Ends, dtype: GGMLType, here: NDArray[np.uint8]) -> NDArray[np.generic]:
    """`here` (bytes of a dense tensor) plus the other rank's, each as it is, or as it travels: in one's own sum only the
    other's values are rounded."""
    if dtype == GGMLType.F32:
        mine = here.view(np.float32)
        rounded = mine.size >= AS_BF16
        sent = f32_to_bf16(mine) if rounded else mine
        came = np.empty_like(sent)
        link.swap(sent.view(np.uint8).data, came.view(np.uint8).data)
        return mine + (bf16_to_f32(came.view(np.uint16)) if rounded else came.view(np.float32))
    came_bytes = np.empty_like(here)
    link.swap(here.data, came_bytes.data)
    if dtype == GGMLType.F16:
        both = [part.view(np.float16).astype(np.float32) for part in (here, came_bytes)]
        return (both[0] + both[1]).astype(np.float16)
    both = [bf16_to_f32(part.view(np.uint16)) for part in (here, came_bytes)]
    return f32_to_bf16(both[0] + both[1])
