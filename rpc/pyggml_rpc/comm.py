"""Sums over two servers (`-sm tensor` of llama.cpp): who may take part, one client's communicators, and the arithmetic.

Owns the limits: a client makes a server listen, or call an address of the client's choice, so who may call or be called
is the operator's to say, and a device has one communicator among all clients. It must not know a socket (`link.py`).
Facts: ggml-rpc.cpp, `comm_init` and `comm_allreduce`.
"""

import ipaddress
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from pyggml.backend.host import HostBuffer
from pyggml.dtypes import GGMLType
from pyggml.quants.bf16 import bf16_to_f32, f32_to_bf16
from pyggml.tensor import Tensor, contiguous_strides
from pyggml_rpc.errors import RefusedError
from pyggml_rpc.wire import Record

if TYPE_CHECKING:
    from pyggml_rpc.session import Session

log = logging.getLogger("pyggml.rpc")

WORLD = 2
LOWEST_PORT = 1024
AS_BF16 = 32_768  # F32 tensors of so many elements travel rounded


class CommError(RefusedError):
    """The other server cannot be had, or was lost."""


class Ends(Protocol):
    """What is asked of a connection to the other server."""

    rank: int

    def swap(self, mine: memoryview, theirs: memoryview) -> None:
        """Raises CommError."""

    def close(self) -> None: ...


Join = Callable[[int, str, int, Callable[[], bool]], Ends]
"""rank, host, port, whether the client is gone -> the connection. Raises CommError."""


class Company:
    """Who may call this server, or be called by it: addresses, networks (10.0.0.0/8), and names, which are looked up
    only if they stand here. Raises ValueError for what is none of them."""

    def __init__(self, words: Sequence[str] = ()) -> None:
        self._networks, self._names = [], set()
        for word in words:
            try:
                self._networks.append(ipaddress.ip_network(word))
            except ValueError:
                if "/" in word or not word.strip() or word.replace(".", "").isdigit():
                    raise ValueError(f"{word!r} is no address, network or name") from None
                self._names.add(word.lower())

    def admits(self, address: str) -> bool:
        try:
            ip = ipaddress.ip_address(address)
        except ValueError:
            return False
        ip = getattr(ip, "ipv4_mapped", None) or ip
        return any(ip in network for network in self._networks)

    def callable(self, host: str) -> str:
        """`host` if it may be called. Raises CommError; nothing is looked up before."""
        if self.admits(host) or host.lower() in self._names:
            return host
        raise CommError(f"{host!r} may not be called (flag --comm)")


LOOPBACK = Company(["127.0.0.0/8", "::1", "localhost"])
NOBODY = Company()


class Communicators:
    """One client's, by device."""

    def __init__(self, session: "Session") -> None:
        self._session = session
        self._links: dict[int, Ends] = {}

    def join(self, request: Record) -> bool:
        """Whether there is a communicator now: a client can do without. Waits for the other rank."""
        device, rank, world, port = (int(request[field][0]) for field in ("device", "rank", "world", "port"))
        session = self._session
        server, who = session.server, session.peer
        if device in self._links:
            return True
        if device >= len(server.slots) or world != WORLD or rank >= world or server.join is None:
            return False
        if not server.slots[device].reserve(session):
            log.warning("%s: COMM_INIT: device %d has a communicator, of another client", who, device)
            return False
        host = bytes(request["host"][0]).decode("ascii", "replace")
        try:
            self._links[device] = server.join(rank, host, port, lambda: session.gone)
        except CommError as error:
            server.slots[device].reserve(None)
            log.warning("%s: COMM_INIT: %s", who, error)
            return False
        log.info("%s: adds up with another server, as rank %d", who, rank)
        return True

    def allreduce(self, device: int, tensor: Tensor, stage: Callable[[int], None]) -> None:
        """The sum of both ranks' tensors in place of this one. `stage` counts memory. Raises RefusedError."""
        link = self._links.get(device)
        if link is None:
            raise RefusedError(f"device {device} has no communicator")
        if tensor.type not in (GGMLType.F32, GGMLType.F16, GGMLType.BF16):
            raise RefusedError(f"tensor {tensor.name!r}: sums of {tensor.type.name}")
        if tensor.nb != contiguous_strides(tensor.type, tensor.ne):
            raise RefusedError(f"tensor {tensor.name!r}: its elements are not dense: {list(tensor.nb)}")
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
        link = self._links.pop(device, None)
        if link is not None:
            link.close()
            self._session.server.slots[device].reserve(None)

    def close(self) -> None:
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


def company_of(words: Sequence[str]) -> Company:
    """What --comm says. Raises ValueError."""
    return NOBODY if list(words) == ["none"] else Company(words)
