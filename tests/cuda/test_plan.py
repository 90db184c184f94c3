"""Plans: launches, work memory, graphs, what is freed when. On a GPU that only takes notes."""

import ctypes
import gc
from typing import NamedTuple

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed: pip install '.[cuda]'")
from cuda_emulator import EmulatedGPU
from cuda_recording import RecordingGPU, place
from op_cases import F16, F32, I32, Operands

from pyggml import ops
from pyggml.backend.cuda.device import CudaDevice
from pyggml.backend.cuda.plan import CudaPlan
from pyggml.backend.scheduler import Scheduler
from pyggml.dtypes import GGMLType
from pyggml.errors import ComputeError, DeviceError, UnsupportedError
from pyggml.graph import build_forward
from pyggml.kernels.cuda.spec import Spec, f32, i32, i64
from pyggml.lowering.cuda import Builder
from pyggml.tensor import Flag, Tensor


def chain(n: int) -> Tensor:
    t = Tensor(F32, (32, 4), name="x")
    for _ in range(n):
        t = ops.scale(t, 2.0)
    return t


def test_the_second_run_is_captured_and_replayed():
    device = CudaDevice(RecordingGPU())
    result = chain(5)
    place(device, result)
    backend = device.open()
    plan = backend.plan(build_forward([result]))
    for _ in range(4):
        backend.compute(plan)
    launches, notes = ["launch unary-scale"] * 5, ["note unary-scale"] * 5
    assert device.gpu.log == [*launches, *notes, "replay 5", "replay 5", "replay 5"]


def test_a_short_plan_is_launched_each_time():
    device = CudaDevice(RecordingGPU())
    result = chain(2)
    place(device, result)
    backend = device.open()
    plan = backend.plan(build_forward([result]))
    for _ in range(3):
        backend.compute(plan)
    assert device.gpu.log == ["launch unary-scale"] * 6


def test_memory_and_graphs_of_plans_are_given_back():
    device = CudaDevice(RecordingGPU())
    result = chain(5)
    place(device, result)
    backend = device.open()
    before = set(device.gpu.allocations)
    plan = backend.plan(build_forward([result]))
    backend.compute(plan)
    backend.compute(plan)
    del plan
    gc.collect()
    assert len(device.gpu.allocations) == len(before) + 1, "freed while somebody might be noting a graph"
    backend.close()
    assert set(device.gpu.allocations) == before and device.gpu.dropped == 1


def test_activations_are_quantised_once_for_all_products_that_read_them():
    device = CudaDevice(RecordingGPU())
    make = Operands(np.random.default_rng(0))
    x = make.leaf(F32, (64, 1))
    products = [ops.mul_mat(make.leaf(GGMLType.Q4_0, (64, 8)), x) for _ in range(3)]
    total = ops.add(ops.add(products[0], products[1]), products[2])
    place(device, total)
    plan = device.open().plan(build_forward([total]))
    assert isinstance(plan, CudaPlan)
    names = [kernel.factory for kernel, *_ in plan.steps]
    assert names == ["quantize", "products", "products", "products"]  # two of them add what is there


@pytest.mark.parametrize(
    ("tokens", "expected"), [(40, ["quantize", "table", *["integers"] * 2]), (3, ["quantize", *["integers"] * 2])]
)
def test_lists_of_many_tokens_are_sorted_by_expert_once(tokens, expected):
    device = CudaDevice(RecordingGPU())
    make = Operands(np.random.default_rng(0))
    x, ids = make.leaf(F32, (64, 1, tokens)), make.leaf(I32, (2, tokens), np.zeros(2 * tokens))
    products = [ops.mul_mat_id(make.leaf(GGMLType.Q4_0, (64, 8, 4)), x, ids) for _ in range(2)]
    place(device, *products)
    plan = device.open().plan(build_forward(products))
    assert isinstance(plan, CudaPlan)
    assert [kernel.factory for kernel, *_ in plan.steps] == expected
    assert plan.steps[-1][0].module == ("mma" if tokens > 3 else "matvec")


def test_what_was_quantised_is_forgotten_when_its_source_changes():
    device = CudaDevice(RecordingGPU())
    make = Operands(np.random.default_rng(0))
    x, w = make.leaf(F32, (64, 1)), make.leaf(GGMLType.Q4_0, (64, 8))
    first = ops.mul_mat(w, x)
    written = ops.cpy(make.leaf(F32, (64, 1)), x)
    second = ops.mul_mat(w, x)
    place(device, first, written, second)
    plan = device.open().plan(build_forward([first, written, second]))
    assert [k.factory for k, *_ in plan.steps] == ["quantize", "products", "move_kernel", "quantize", "products"]


def test_work_memory_is_shared_by_those_who_do_not_meet():
    builder = Builder((9, 0), 132, 1 << 16)
    spec = Spec("unary", "scale")
    a, b, c = builder.scratch(1000), builder.scratch(500), builder.scratch(900)
    builder.launch(spec, (1,), 32, (a.at(),))
    builder.launch(spec, (1,), 32, (a.at(), b.at(4)))
    builder.launch(spec, (1,), 32, (b.at(), c.at()))
    size = builder.place_scratch()
    spans = sorted((s.offset, s.offset + s.size) for s in (a, b))
    assert spans[0][1] <= spans[1][0], "a and b are in use at once"
    assert c.offset == a.offset and size < 1000 + 500 + 900 + 3 * 256
    assert all(s.offset % 256 == 0 for s in (a, b, c))


def test_constants_lie_behind_the_status():
    builder = Builder((9, 0), 132, 1 << 16)
    first, second = builder.constant(np.arange(3, dtype=np.float32)), builder.constant(np.arange(5, dtype=np.int32))
    data = builder.constants()
    assert data[:16].tolist() == [0] * 16
    assert np.frombuffer(data[first.offset : first.offset + 12], np.float32).tolist() == [0, 1, 2]
    assert np.frombuffer(data[second.offset : second.offset + 20], np.int32).tolist() == [0, 1, 2, 3, 4]


class Args(NamedTuple):
    a: i32
    b: f32
    c: i64


def test_parameters_are_as_the_kernels_read_them():
    device = CudaDevice(RecordingGPU())
    builder = Builder((9, 0), 132, 1 << 16)
    scratch = builder.scratch(64)
    builder.launch(Spec("unary", "scale"), (2, 3), 64, Args(-5, 0.5, scratch.at(8)))
    memory = device.gpu.alloc(builder.place_scratch())
    plan = CudaPlan(device.gpu, builder, [], memory)
    ((_, grid, threads, shared, address),) = plan.steps
    assert (grid, threads, shared) == ((2, 3, 1), 64, 0)
    places = (ctypes.c_int64 * 3).from_address(address)
    assert ctypes.c_int32.from_address(places[0]).value == -5
    assert ctypes.c_float.from_address(places[1]).value == 0.5
    assert ctypes.c_int64.from_address(places[2]).value == memory + scratch.offset + 8


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("nothing", ["rms_norm"]),
        ("a second reader", ["rms_norm", "binary", "scale"]),
        ("the other order", ["rms_norm", "binary"]),
        ("read twice", ["rms_norm", "binary"]),
        ("wanted outside", ["rms_norm", "binary"]),
        ("over its source", ["rms_norm", "binary"]),
        ("upon its source", ["rms_norm"]),
    ],
)
def test_a_norm_takes_its_weights_along_only_where_nobody_sees_a_difference(change, expected):
    device = CudaDevice(RecordingGPU())
    make = Operands(np.random.default_rng(0))
    a, weights = make.leaf(F32, (64, 5)), make.leaf(F32, (64,))
    norm = ops.rms_norm(a, 1e-5)
    outputs = [ops.mul(norm, weights)]
    if change == "a second reader":
        outputs.append(ops.scale(norm, 2.0))
    elif change == "the other order":
        outputs = [ops.mul(make.leaf(F32, (64, 5)), norm)]
    elif change == "read twice":
        outputs = [ops.mul(norm, norm)]
    elif change == "wanted outside":
        norm.flags |= Flag.OUTPUT
    place(device, *outputs)
    if change == "over its source":
        outputs[0].data = a.data + 256
    elif change == "upon its source":
        outputs[0].data = a.data
    plan = device.open().plan(build_forward(outputs))
    assert [k.factory for k, *_ in plan.steps] == expected


def test_an_odd_address_is_refused():
    device = CudaDevice(RecordingGPU())
    result = chain(1)
    place(device, result)
    result.data += 2
    with pytest.raises(UnsupportedError, match=r"CUDA0.*not a multiple of 4"):
        device.open().plan(build_forward([result]))


def test_an_index_out_of_range_is_told_once(either):
    device = either
    make = Operands(np.random.default_rng(0))
    table, rows = make.leaf(F32, (32, 5)), make.leaf(I32, (3,))
    got = ops.get_rows(table, rows, name="embeddings")
    place(device, got)
    table.buffer.set(table, make.contents[id(table)][1])
    backend = device.open()
    plan = backend.plan(build_forward([got]))
    rows.buffer.set(rows, np.array([1, 5, 2], np.int32))
    with pytest.raises(ComputeError, match="GET_ROWS 'embeddings': row index 5, there are 5 rows"):
        backend.compute(plan)
    rows.buffer.set(rows, np.array([1, 4, 2], np.int32))
    backend.compute(plan)
    expected = np.frombuffer(make.contents[id(table)][1], np.float32).reshape(5, 32)[[1, 4, 2]]
    assert got.buffer.get(got) == expected.tobytes()


def test_results_of_an_aborted_run_are_not_to_be_used():
    class Interrupted(RecordingGPU):
        def launch(self, *args) -> None:
            super().launch(*args)
            if self.interrupt:
                backend.abort()

    device = CudaDevice(Interrupted())
    result = chain(1)
    place(device, result)
    backend = device.open()
    plan = backend.plan(build_forward([result]))
    device.gpu.interrupt = True
    with pytest.raises(ComputeError, match="aborted"):
        backend.compute(plan)
    device.gpu.interrupt = False
    backend.compute(plan)
    backend.abort()  # nothing runs: nothing to end
    backend.compute(plan)


# ---- buffers


@pytest.mark.parametrize("size", [1, 100, (1 << 20) + 3, 11 << 20])
def test_bytes_come_back_through_the_pinned_ring(either, size):
    data = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    t = Tensor(GGMLType.I8, (size,))
    buffer = either.alloc_buffer(size)
    buffer.place(t, 0)
    buffer.set(t, data)
    assert buffer.get(t) == data.tobytes()
    assert buffer.get(t, size // 2, size - size // 2) == data[size // 2 :].tobytes()
    buffer.memset(t, 7, size // 2)
    assert buffer.get(t) == data[: size // 2].tobytes() + b"\7" * (size - size // 2)
    buffer.clear(0)
    assert not any(buffer.get(t, 0, min(size, 1000)))
    buffer.free()
    buffer.free()
    assert not getattr(either.gpu, "allocations", None), "memory is left over"


def test_tensors_are_copied_within_a_gpu_and_carried_between_two(device):
    from cuda_device import EmulatedDevice

    other = EmulatedDevice(number=1)
    a, b, c = (Tensor(F16, (32,)) for _ in range(3))
    for t, where in ((a, device), (b, device), (c, other)):
        where.alloc_buffer(64).place(t, 0)
    a.buffer.set(a, bytes(range(64)))
    assert b.buffer.copy(a, b) and b.buffer.get(b) == bytes(range(64))
    assert not c.buffer.copy(a, c)
    assert (device.name, other.name) == ("CUDA0", "CUDA1")


def test_memory_that_is_not_there_is_refused_in_one_line(device):
    small = type(device)(EmulatedGPU(memory=1 << 20))
    with pytest.raises(DeviceError, match="cannot allocate 2097152 bytes"):
        small.alloc_buffer(2 << 20)
    buffer = small.alloc_buffer(1 << 19)
    assert small.memory() == (1 << 19, 1 << 20)
    buffer.free()
    assert small.memory() == (1 << 20, 1 << 20)


def test_a_graph_over_gpu_and_cpu(device):
    """What the GPU does not compute the CPU does."""
    from pyggml.backend.reference import ReferenceDevice

    backends = [device.open(), ReferenceDevice().open()]
    x = Tensor(F32, (8, 4), flags=Flag.INPUT, name="x")
    masked = ops.diag_mask_zero(ops.scale(x, 3.0), 2)
    result = ops.scale(masked, 2.0)
    result.flags |= Flag.OUTPUT
    assert not device.supports_op(masked)
    schedule = Scheduler(backends).schedule(build_forward([result]))
    values = np.arange(32, dtype=np.float32).reshape(4, 8)
    schedule.set_input(x, values)
    schedule.run()
    assert (schedule.get(result)[0, 0] == 6 * np.tril(values, 2)).all()
