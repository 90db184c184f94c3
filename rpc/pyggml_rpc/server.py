"""What all clients share: the served devices, the memory on offer, the cache, the counts."""

import threading
from collections.abc import Sequence

from pyggml.backend.base import Device, Kind
from pyggml.backend.host import host_memory
from pyggml.errors import DeviceError
from pyggml_rpc.cache import WeightCache
from pyggml_rpc.comm import Join
from pyggml_rpc.memory import SHARE, Ledger
from pyggml_rpc.preload import Preload
from pyggml_rpc.served import ServedDevice
from pyggml_rpc.turns import Turns
from pyggml_rpc.wire import NEWEST, Command, Protocol

LOWERINGS = 2  # graphs that are made ready at once, each of another client
COMPILING = 3.0  # seconds after which one is taken to wait for the compiler, and keeps nobody else waiting
MAX_BUFFERS = 1 << 15  # of all clients; each may be a mapping, of which Linux gives a process 65,530


class Counters:
    """Requests and bytes of their bodies by command, over all clients; of SET_TENSOR the data alone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.requests = dict.fromkeys(Command, 0)
        self.bytes = dict.fromkeys(Command, 0)
        self.refused = 0

    def add(self, command: Command, size: int) -> None:
        """A request of so many bytes."""
        with self._lock:
            self.requests[command] += 1
            self.bytes[command] += size

    def add_refused(self) -> None:
        """A request that was refused."""
        with self._lock:
            self.refused += 1


class Server:
    """Devices offered to any number of clients.

    `n_threads` goes to each device's backend (None: the backend's choice). `memory_limit` is what to offer of each
    device in bytes (None: what is free, less a margin). `client_share`: what one client may take of what the others have
    left. `graph_timeout`: seconds that one graph may compute (None: any time). `cache` keeps weights that clients ask to
    keep, `preload` has those that all may be handed. `protocol` is what it speaks: a client does not say which version it wants.
    """

    def __init__(
        self,
        devices: Sequence[Device],
        *,
        n_threads: int | None = None,
        memory_limit: int | None = None,
        client_share: float = SHARE,
        graph_timeout: float | None = None,
        cache: WeightCache | None = None,
        preload: Preload | None = None,
        protocol: Protocol = NEWEST,
    ) -> None:
        if not devices:
            raise DeviceError("a server needs at least one device")
        self.devices = []
        for device in devices:
            here = device.kind is Kind.CPU
            ledger = Ledger(device.memory, limit=memory_limit, share=client_share, lazy=here)
            self.devices.append(ServedDevice(device, n_threads, ledger, graph_timeout))
        # what clients cause in this machine's own memory: graphs, frames on their way to a GPU
        hosts = [served.ledger for served in self.devices if served.device.kind is Kind.CPU]
        self.host = hosts[0] if hosts else Ledger(host_memory, share=client_share)
        self.graph_timeout = graph_timeout
        self.lowering = Turns(LOWERINGS, overstay=COMPILING)
        self.cache = cache
        self.preload = preload
        self.protocol = protocol
        self.join: Join | None = None  # another server, to add up tensors with; the listener's
        self.counters = Counters()
        self._buffers = 0
        self._lock = threading.Lock()

    def count_buffers(self, more: int) -> bool:
        """Count so many more (or fewer) buffers, unless there were too many: the system has a limit on mappings."""
        with self._lock:
            if self._buffers + more > MAX_BUFFERS:
                return False
            self._buffers += more
            return True

    @property
    def lost(self) -> str | None:
        """Why nothing can be computed here any more, when every device is lost; each one's loss is told in the log once."""
        reasons = [served.lost for served in self.devices]
        return None if None in reasons else "; ".join(filter(None, reasons))

    def close(self) -> None:
        for served in self.devices:
            served.close()
