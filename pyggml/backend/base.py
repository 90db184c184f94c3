"""What a device must be able to do: the contract between engine, scheduler and every backend.

Owns the abstract classes and the list of devices; knows no kernel and no network. The shape follows
ggml-backend-impl.h: a Device tells facts and hands out Buffers, a Backend computes on it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from pyggml.errors import ComputeError, DeviceError, ShapeError, UnsupportedError
from pyggml.ops import VIEW_OPS, check
from pyggml.tensor import Buffer as Buffer
from pyggml.tensor import Bytes as Bytes
from pyggml.tensor import Tensor
from pyggml.tensor import Usage as Usage

if TYPE_CHECKING:
    from pyggml.graph import Graph
    from pyggml.jit import Job

ASK_EVERY = 256
"""Nodes between two questions whether a plan is still wanted."""

Item = TypeVar("Item")


class Kind(Enum):
    """CPU is this machine's own; layers are offloaded to GPU kinds (also remote ones)."""

    CPU = "CPU"
    GPU = "GPU"


class Plan:
    """A graph made ready to run again and again; the tensors' places are fixed, their contents are not.

    `nbytes`: the device's memory that it takes for itself, such as work memory.
    """

    nbytes: int = 0


class Begun(NamedTuple):
    """A plan on its way: `finish` is `plan`'s second half, and quick once all `jobs` are done (kernels that are being
    compiled)."""

    jobs: list[Job]
    finish: Callable[[], Plan]


class Backend(ABC):
    """A device with what it needs to compute: threads, a stream, a connection."""

    device: Device
    repeats = False
    """Whether it makes plans of graphs whose layers stand for more of them (`Graph.repeats`)."""

    @abstractmethod
    def plan(self, graph: Graph, *, cancelled: Callable[[], bool] | None = None, max_work: int | None = None) -> Plan:
        """Make ready. All tensors are placed. Raises UnsupportedError naming the node that cannot be computed.

        `cancelled` is asked every so many nodes whether nobody waits for the plan any more: ComputeError then.
        `max_work`: the bytes of work memory that the plan may take here; WorkMemoryError, before it takes any, if it
        needs more. A backend whose plans take none, or that computes elsewhere, may leave both aside.
        """

    def begin(self, graph: Graph) -> Begun:
        """Begin to `plan`, and do not wait for what has to be compiled. Of each node `Device.supports_op` has been asked."""
        return Begun([], lambda: self.plan(graph))

    @abstractmethod
    def compute(self, plan: Plan) -> None:
        """Run to the end, or, where results are only seen through `get`, hand over in order. Raises ComputeError."""

    def use_threads(self, n_threads: int) -> None:  # noqa: B027
        """Compute with so many threads from now on, at most those of `Device.open`. Optional: changes no result."""

    def flush(self) -> None:  # noqa: B027
        """Begin with what was handed over, if it waits for more. Optional: changes no result."""

    def synchronize(self) -> None:  # noqa: B027
        """Return when everything handed over is done. Optional: for backends that compute asynchronously."""

    def abort(self) -> None:  # noqa: B027
        """Make a running `compute` end early with ComputeError; may be called from another thread. Optional."""

    def trim(self) -> None:  # noqa: B027
        """Give back memory that runs which are over have left. Optional."""

    def close(self) -> None:  # noqa: B027
        """Give threads and connections back. Optional."""


class Device(ABC):
    """`backend_name`: what computes there, in the word that servers print; "" = the kind's. `shares_plans`: several of its
    backends compute beside each other, and each computes what any of them has planned. `few_shapes`: to look at some cells
    of a cache too many costs less there than a graph of another shape does. `memory_name`: llama.cpp's name of the memory
    there, where that is another than the device's."""

    name: str
    description: str
    kind: Kind
    backend_name: str = ""
    memory_name: str = ""
    shares_plans: bool = False
    few_shapes: bool = False
    alignment: int = 64
    max_size: int = 2**64 - 1

    @abstractmethod
    def memory(self) -> tuple[int, int]:
        """Bytes (free, total)."""

    @abstractmethod
    def why_not(self, node: Tensor) -> str | None:
        """Why this well-formed node cannot be computed here; None = it can. Called after ops.check passed."""

    @property
    def lost(self) -> str | None:
        """Why nothing can be computed there any more by those who use this object; None = all is well. Then buffers can be
        freed, and a local device has no `memory` free; all else raises PyggmlError."""
        return None

    def give_up(self) -> None:  # noqa: B027
        """Make whatever waits for the device fail: nothing is computed there any more. For any thread. Optional: for devices that may
        fall silent."""

    @abstractmethod
    def alloc_buffer(self, size: int, usage: Usage = Usage.ANY) -> Buffer:
        """All bytes are zero. Raises DeviceError when the memory is not there."""

    @abstractmethod
    def open(self, n_threads: int | None = None) -> Backend:
        """Raises DeviceError."""

    def alloc_size(self, tensor: Tensor) -> int:
        """Bytes to set aside for a tensor: at least its nbytes."""
        return tensor.nbytes

    def supports_op(self, node: Tensor) -> bool:
        """True exactly when `compute` of this node succeeds."""
        if node.op in VIEW_OPS:
            return True
        try:
            check(node)
        except (ShapeError, UnsupportedError):
            return False
        return self.why_not(node) is None


def while_wanted(items: Sequence[Item], cancelled: Callable[[], bool] | None) -> Iterator[Item]:
    """The items in turn. Raises ComputeError when `cancelled`, asked before every 256th, says so."""
    return iter(items) if cancelled is None else _while_wanted(items, cancelled)


def _while_wanted(items: Sequence[Item], cancelled: Callable[[], bool]) -> Iterator[Item]:
    for number, item in enumerate(items):
        if number % ASK_EVERY == 0 and cancelled():
            raise ComputeError(f"cancelled at node {number} of {len(items)}")
        yield item


def extra_devices(kind: str, spec: str, **options: object) -> list[Device]:
    """Devices of a backend that another package brings (entry-point group `pyggml.backends`), e.g. kind "rpc".

    `options` are that backend's own, such as `io_timeout`.
    """
    found = entry_points(group="pyggml.backends", name=kind)
    for entry in found:
        devices: list[Device] = entry.load()(spec, **options)
        return devices
    raise DeviceError(f"no backend named {kind!r} is installed")
