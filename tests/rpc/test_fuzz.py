"""Damaged and random requests: a session ends with a refusal or goes on; nothing else ever happens.

Buffers end at a page that cannot be read and begin behind bytes that must not change, so a kernel that leaves its
tensors is found.
"""

import mmap
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from guard_page import PAGE, forbid
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyggml_rpc.errors import RefusedError, RemoteProtocolError
from pyggml_rpc.records import write_graph
from pyggml_rpc.server import Server
from pyggml_rpc.wire import GRAPH_UID, NEWEST, TENSOR, Command, Rest, pack, pack_header

from pyggml import ops
from pyggml.backend.base import Device, Usage
from pyggml.backend.cpu import CPUDevice
from pyggml.backend.host import HostBuffer
from pyggml.backend.reference import ReferenceDevice
from pyggml.dtypes import GGMLType
from pyggml.graph import build_forward
from pyggml.tensor import Tensor

SIZE = 1 << 16
CANARY = 0xC5
T = GGMLType


class Fenced(HostBuffer):
    """64 KiB of random bytes between a page of canaries and a page without any access."""

    def __init__(self, device: Device) -> None:
        self.mapping = mmap.mmap(-1, SIZE + 2 * PAGE)
        whole = np.frombuffer(self.mapping, np.uint8)
        forbid(whole.ctypes.data + PAGE + SIZE, PAGE)
        self.canaries = whole[:PAGE]
        self.canaries[:] = CANARY
        super().__init__(device, whole[PAGE : PAGE + SIZE], Usage.ANY)
        self.memory[:] = np.random.default_rng(7).integers(0, 256, SIZE, np.uint8)
        floats = self.memory[: SIZE // 2].view(np.float32)
        floats[:] = np.random.default_rng(8).standard_normal(floats.size)

    def free(self) -> None:
        assert (self.canaries == CANARY).all(), "a kernel wrote before its buffer"


def fenced(kind: type[Device]) -> Device:
    device = kind()
    device.alloc_buffer = lambda size, usage=Usage.ANY: Fenced(device)  # type: ignore[method-assign]
    return device


def f32(*ne: int) -> Tensor:
    return Tensor(T.F32, ne)


def f16(*ne: int) -> Tensor:
    return Tensor(T.F16, ne)


VALID: dict[str, Callable[[], Tensor]] = {
    "add": lambda: ops.add(f32(33, 3, 2), f32(33, 1, 2)),
    "mul": lambda: ops.mul(f32(64, 3), f32(64)),
    "scale": lambda: ops.scale(f32(40, 3), 2.0, 1.0),
    "silu": lambda: ops.unary(f32(65, 2), ops.UnaryOp.SILU),
    "swiglu": lambda: ops.swiglu(f32(48, 3), f32(48, 3)),
    "glu": lambda: ops.glu(f32(48, 3), None, ops.GluOp.SWIGLU),
    "rms_norm": lambda: ops.rms_norm(f32(576, 3), 1e-5),
    "soft_max": lambda: ops.soft_max(f32(40, 3, 2), f16(40, 3), 0.5),
    "rope": lambda: ops.rope(f32(64, 3, 2), Tensor(T.I32, (2,)), 64),
    "rope neox": lambda: ops.rope(f32(64, 3, 2), Tensor(T.I32, (2,)), 32, ops.ROPE_NEOX),
    "mul_mat f32": lambda: ops.mul_mat(f32(64, 5, 1), f32(64, 3, 2)),
    "mul_mat f16": lambda: ops.mul_mat(f16(72, 5), f32(72, 3)),
    "mul_mat q4_0": lambda: ops.mul_mat(Tensor(T.Q4_0, (96, 5)), f32(96, 1)),
    "mul_mat q4_1": lambda: ops.mul_mat(Tensor(T.Q4_1, (96, 17)), f32(96, 9)),
    "mul_mat q8_0": lambda: ops.mul_mat(Tensor(T.Q8_0, (64, 5)), f32(64, 2)),
    "flash_attn": lambda: ops.flash_attn_ext(f32(64, 2, 4), f16(64, 32, 2), f16(64, 32, 2), f16(32, 64), 0.125),
    "cpy": lambda: ops.cpy(f32(32, 3), f16(96)),
    "cont": lambda: ops.cont(ops.permute(f32(8, 5, 3), 1, 0, 2, 3)),
    "dup": lambda: ops.dup(f16(40, 2)),
    "get_rows": lambda: ops.get_rows(f32(32, 7), Tensor(T.I32, (3,))),
    "get_rows q4_0": lambda: ops.get_rows(Tensor(T.Q4_0, (64, 7)), Tensor(T.I32, (3,))),
    "set_rows": lambda: ops.set_rows(f16(32, 9), f32(32, 2), Tensor(T.I64, (2,))),
}


def records_of(build: Callable[[], Tensor], handle: int, base: int) -> np.ndarray[Any, Any]:
    """The body of a GRAPH_COMPUTE whose tensors lie one behind the other, the last at the very end of the buffer."""
    graph = build_forward([build()])
    tensors: dict[int, Tensor] = {}
    for node in graph.nodes:
        for t in (*node.src, node):
            root = t if t is None or t.view_src is None else t.view_src
            if root is not None:
                tensors.setdefault(id(root), root)
    at = {}
    end = SIZE
    for key, t in reversed(tensors.items()):
        end = (end - t.nbytes) // 64 * 64 if at else SIZE - (t.nbytes + 15) // 16 * 16
        at[key] = base + end
    assert end >= 0

    def place(t: Tensor) -> tuple[int, int]:
        return handle, at[id(t.view_src or t)] + t.view_offs

    return np.frombuffer(bytearray(write_graph(NEWEST, 0, 1, graph, place)), np.uint8)


def session_ends_well(action: Callable[[], object]) -> None:
    try:
        action()
    except (RefusedError, RemoteProtocolError) as error:
        assert "\n" not in str(error)


@pytest.fixture(scope="module", params=[ReferenceDevice, CPUDevice], ids=["reference", "cpu"])
def fenced_server(request: pytest.FixtureRequest) -> Server:
    return Server([fenced(request.param)], n_threads=2)


NUMBERS = st.one_of(
    st.integers(0, 5),
    st.sampled_from([7, 8, 16, 31, 32, 33, 63, 64, 100, 256, 576, 4095, 4096, 4097, SIZE - 1, SIZE, SIZE + 1]),
    st.sampled_from([2**k + d for k in (15, 16, 31, 32) for d in (-1, 0, 1)]),
    st.integers(0, 2**32 - 1),
)
FIELDS = ["type", "ne", "nb", "op", "op_params", "flags", "src", "data", "buffer", "view_src", "id"]


@st.composite
def damage(draw: st.DrawFn) -> tuple[int, str, int, int]:
    """(record, field, index in it, new value)"""
    field = draw(st.sampled_from(FIELDS))
    if field in ("ne", "nb") and draw(st.booleans()):
        value = draw(st.sampled_from([0, 1, 2, 4, 8, 16, 18, 32, 64, 128]))
    elif field == "type":
        value = draw(st.sampled_from([*map(int, GGMLType), 4, 31, 99]))
    elif field == "op":
        value = draw(st.integers(0, 101))
    elif field == "src":
        value = draw(st.integers(0, 6))
    else:
        value = draw(NUMBERS)
    return draw(st.integers(0, 6)), field, draw(st.integers(0, 15)), value


@pytest.mark.parametrize("case", VALID)
def test_undamaged_graphs_are_computed(kit: Any, fenced_server: Server, case: str) -> None:
    """Else the damaged ones would be refused for another reason."""
    client = kit.Glued(fenced_server)
    handle, base = client.alloc(SIZE)
    body = records_of(VALID[case], handle, base)
    rows = [t for t in np.frombuffer(body, TENSOR, offset=len(body) % 296) if t["type"] in (T.I32, T.I64)]
    for tensor in rows:
        client.set(np.array([tensor]), bytes(int(tensor["ne"][0]) * int(tensor["nb"][0])))
    client.compute_body(bytes(body))
    client.session.close()


@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(VALID)), st.lists(damage(), min_size=0, max_size=3))
def test_damaged_graphs(kit: Any, fenced_server: Server, case: str, damages: list[tuple[int, str, int, int]]) -> None:
    client = kit.Glued(fenced_server)
    handle, base = client.alloc(SIZE)
    body = records_of(VALID[case], handle, base)
    n_nodes = int(np.frombuffer(body, GRAPH_UID, 1)["n_nodes"][0])
    records = body[GRAPH_UID.itemsize + 8 * n_nodes + 4 :].view(TENSOR)
    for number, field, index, value in damages:
        target = records[number % len(records) : number % len(records) + 1]
        if field == "op_params":
            raw = bytearray(target["op_params"][0].tobytes())
            raw[4 * index : 4 * index + 4] = (value & 0xFFFFFFFF).to_bytes(4, "little")
            target["op_params"] = bytes(raw)
        elif field in ("ne", "nb", "src"):
            part = target[field][0]
            part[index % len(part)] = value & 0xFFFFFFFF
        elif field == "data":
            target["data"] = base + value
        elif field == "flags":
            target["flags"] = value & 0x7FFFFFFF
        else:
            target[field] = value & 0xFFFFFFFF
    session_ends_well(lambda: client.compute_body(bytes(body)))
    client.session.close()


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([c for c in Command if c is not Command.HELLO]),
    st.binary(max_size=700),
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 295), st.integers(0, 255)), max_size=6),
)
def test_random_bodies(
    kit: Any, fenced_server: Server, command: Command, noise: bytes, sensible: bool, flips: list[tuple[int, int]]
) -> None:
    """Bodies of the right length: noise, or a good record with a few bytes changed."""
    client = kit.Glued(fenced_server)
    handle, base = client.alloc(SIZE)
    layout = NEWEST[command].request
    body = bytearray(noise.ljust(layout.itemsize, b"\0")[: layout.itemsize])
    names = layout.names or ()
    if sensible and "tensor" in names:
        record = bytearray(kit.record((16,), buffer=handle, data=base + 64).tobytes())
        for at, value in flips:
            record[at] = value
        body = bytearray(pack(layout, tensor=np.frombuffer(record, TENSOR), **{n: 3 for n in names if n == "size"}))
    if sensible and "remote_ptr" in names:
        body[:8] = handle.to_bytes(8, "little")
    rest = b"" if NEWEST[command].request_rest is Rest.NOTHING else noise
    stream = pack_header(command, len(body) + len(rest)) + body + rest

    def act() -> None:
        client.client_end = _Deaf()
        client.send(stream)

    session_ends_well(act)
    client.session.close()


class _Deaf:
    """A client that does not care what it is told."""

    def space(self) -> memoryview:
        return memoryview(bytearray(1 << 16))

    def received(self, count: int) -> None:
        pass

    def next_event(self) -> None:
        return None


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=2000))
def test_random_streams(kit: Any, fenced_server: Server, stream: bytes) -> None:
    client = kit.Glued(fenced_server)
    client.client_end = _Deaf()
    session_ends_well(lambda: client.send(stream))
    client.session.close()
