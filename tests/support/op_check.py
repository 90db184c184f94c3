"""Runs a case on the reference and on a device under test and compares. Owns the memory that catches wrong accesses:
operands end at a page that cannot be touched, poison lies before them.
"""

import hypothesis
import numpy as np
import pytest
from guard_page import at_the_end
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import Case
from op_shares import seen

from pyggml.backend.base import Buffer, Device
from pyggml.backend.cuda.device import CudaBackend
from pyggml.backend.host import HostBuffer, view_of
from pyggml.backend.reference import REFERENCE_OPS, OpReference, ReferenceDevice
from pyggml.backend.reference.values import read
from pyggml.dtypes import GGMLType
from pyggml.errors import ShapeError, UnsupportedError
from pyggml.graph import build_forward
from pyggml.ops import Op
from pyggml.quants import QUANTS
from pyggml.tensor import Tensor

POISON = 0xA5
POISON_BYTES = 192


class GuardedBuffer(HostBuffer):
    """Host memory whose last byte is followed by a page that cannot be read or written. Filled with poison."""

    def __init__(self, device: Device, size: int) -> None:
        super().__init__(device, at_the_end(size))
        self.clear(POISON)


def place(tensor: Tensor, device: Device, data: bytes | None, guarded: bool) -> Buffer:
    """Poison, then the tensor. With `guarded` it ends at the guard page, at an address that is a multiple of 4 at least."""
    size = tensor.nbytes
    buffer: Buffer
    if guarded:
        buffer = GuardedBuffer(device, POISON_BYTES + size)
        buffer.place(tensor, POISON_BYTES)
    else:
        buffer = device.alloc_buffer(POISON_BYTES + device.alloc_size(tensor) + POISON_BYTES)
        buffer.clear(POISON)
        buffer.place(tensor, POISON_BYTES)
    if data is not None:
        assert len(data) == size, (tensor, len(data), size)
        buffer.set(tensor, data)
    return buffer


def poison_of(buffer: Buffer, tensor: Tensor) -> tuple[bytes, bytes]:
    """What lies before and behind the tensor."""

    def area(offset: int, size: int) -> bytes:
        t = Tensor(GGMLType.I8, (size,))
        buffer.place(t, offset)
        return buffer.get(t)

    end = POISON_BYTES + tensor.nbytes
    return area(0, POISON_BYTES), area(end, buffer.size - end)


def every_tensor(node: Tensor) -> list[Tensor]:
    found: dict[int, Tensor] = {}
    stack = [node]
    while stack:
        t = stack.pop()
        if id(t) not in found:
            found[id(t)] = t
            stack += [s for s in (*t.src, t.view_src) if s is not None]
    return list(found.values())


def run(
    case: Case, device: Device, n_threads: int | None = None, guarded: bool | None = None
) -> tuple[bytes, np.ndarray]:
    """The bytes of the memory that the node writes, and the node's values. Raises what plan and compute raise."""
    tensors = every_tensor(case.node)
    if guarded is None:
        probe = device.alloc_buffer(64)
        # ggml's ROPE reads frequency factors of all ne0 / 2 pairs, also where it needs and checks n_dims / 2 only
        guarded = isinstance(probe, HostBuffer) and device.name != "peer"
        probe.free()
    buffers: dict[int, Buffer] = {}
    for t in tensors:
        if t.view_src is None:
            buffers[id(t)] = place(t, device, case.contents.get(id(t), (t, None))[1], guarded)
    for t in tensors:
        if t.view_src is not None:
            t.buffer, t.data = t.view_src.buffer, t.view_src.data + t.view_offs
    backend = device.open(n_threads)
    try:
        backend.compute(backend.plan(build_forward([case.node])))
        backend.synchronize()
    finally:
        backend.close()
    owner = case.node.view_src or case.node
    for t in tensors:
        if t.view_src is None:
            before, behind = poison_of(buffers[id(t)], t)
            assert set(before) <= {POISON}, f"{device.name}: wrote before the start of {t}"
            assert set(behind) <= {POISON}, f"{device.name}: wrote behind the end of {t}"
            if t is not owner and id(t) in case.contents:
                assert buffers[id(t)].get(t) == case.contents[id(t)][1], f"{device.name}: wrote to its operand {t}"
    after = buffers[id(owner)].get(owner)
    if isinstance(backend, CudaBackend):
        for buffer in buffers.values():
            buffer.free()
    return after, values_of(case.node, after)


def values_of(node: Tensor, owner_bytes: bytes) -> np.ndarray:
    """The node's values, read out of the bytes of the tensor that owns its memory, whatever device they came from."""
    copy = on_host(node, owner_bytes)
    return read(copy) if node.type in QUANTS else view_of(copy).astype(np.float64)


def on_host(node: Tensor, owner_bytes: bytes) -> Tensor:
    copy = Tensor(node.type, node.ne, node.nb)
    buffer = HostBuffer.wrap(ReferenceDevice(), np.frombuffer(owner_bytes, np.uint8))
    buffer.place(copy, node.view_offs if node.view_src is not None else 0)
    return copy


def untouched(node: Tensor) -> np.ndarray:
    """For each byte of the owner's memory whether it is none of the node's."""
    owner = node.view_src or node
    marks = np.ones(owner.nbytes, np.uint8)
    copy = Tensor(node.type, node.ne, node.nb)
    HostBuffer(ReferenceDevice(), marks).place(copy, node.view_offs if node.view_src is not None else 0)
    view_of(copy)[...] = 0
    return np.frombuffer(marks, np.uint8) == 1


def assert_close(
    expected: np.ndarray, actual: np.ndarray, nmse: float, atol: float, what: str, least: float = 0.0
) -> None:
    """NaNs and infinities at the same places, then the sum of squared differences over the sum of squares."""
    for name, test in (("NaN", np.isnan), ("+inf", np.isposinf), ("-inf", np.isneginf)):
        differ = test(expected) != test(actual)
        if differ.any():
            at = tuple(int(i) for i in np.argwhere(differ)[0])
            raise AssertionError(
                f"{what}: {name} differs at {differ.sum()} places, first {at}: {expected[at]} became {actual[at]}"
            )
    finite = np.isfinite(expected)
    e, a = expected[finite], actual[finite]
    difference = np.where(np.abs(e - a) <= atol, 0.0, e - a)
    wrong, size = float(difference @ difference), max(float(e @ e), e.size * least**2)
    error = 0.0 if wrong == 0.0 else wrong / size if size else float("inf")
    assert error <= nmse, f"{what}: NMSE {error:.3g} > {nmse:.3g}; largest difference {np.abs(e - a).max():.3g}"


def check(case: Case, device: Device, n_threads: int | None = None) -> None:
    """The device does what the reference does; where it says that it cannot, its plan refuses. `seen` counts both."""
    supported = device.supports_op(case.node)
    if not supported and not case.node.nelements:
        return  # nothing to compute: left out of any plan
    seen.count(device.name, Op(case.node.op), supported)
    if not supported:
        with pytest.raises((UnsupportedError, ShapeError)):
            run(case, device)
        return
    expected_bytes, expected = run(case, ReferenceDevice(), guarded=False)
    actual_bytes, actual = run(case, device, n_threads)
    nmse, atol = case.limits(device.name)
    assert_close(expected, actual, nmse, atol, f"{device.name} {case!r}", case.size)
    keep = untouched(case.node)
    if keep.any():
        before, after = (np.frombuffer(x, np.uint8)[keep] for x in (expected_bytes, actual_bytes))
        assert (before == after).all(), f"{device.name} {case!r}: wrote between the elements of the result"


def mutant_of(op: Op, compute: OpReference) -> ReferenceDevice:
    """A device that is the reference but for one op."""
    return ReferenceDevice({**REFERENCE_OPS, op: compute})


def assert_caught(cases: st.SearchStrategy[Case], device: Device) -> None:
    """The same cases find that this device is wrong."""

    @settings(
        max_examples=150,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @given(cases)
    def attempt(case: Case) -> None:
        check(case, device)

    with pytest.raises(AssertionError):
        attempt()
