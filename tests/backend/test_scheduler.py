"""One graph over several devices: who computes what, what is carried across, and that nobody can tell from the result."""

import itertools
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from fake_devices import FakeBackend, FakeDevice
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import write_llama

import pyggml.backend.scheduler as scheduler_module
from pyggml import ops
from pyggml.backend.base import Plan, Usage
from pyggml.backend.scheduler import Scheduler, copy_across
from pyggml.dtypes import GGMLType
from pyggml.errors import ComputeError, DeviceError, UnsupportedError
from pyggml.graph import build_forward
from pyggml.model.model import Model
from pyggml.model.placement import split_layers
from pyggml.ops import Op
from pyggml.runtime.context import Context
from pyggml.tensor import Flag, Tensor

TOKENS = [5, 9, 2, 77, 31, 8, 40]


def source(*ne, name="x"):
    return Tensor(GGMLType.F32, ne, flags=Flag.INPUT, name=name)


def weight(device, *ne, name="w", seed=0):
    tensor = Tensor(GGMLType.F32, ne, name=name)
    device.alloc_buffer(tensor.nbytes, Usage.WEIGHTS).place(tensor, 0)
    values = np.random.default_rng(seed).normal(size=tensor.nelements).astype(np.float32)
    tensor.buffer.set(tensor, values.view(np.uint8))
    return tensor


def schedule_on(devices, outputs):
    for output in outputs:
        output.flags |= Flag.OUTPUT
    return Scheduler([d.open() for d in devices]).schedule(build_forward(outputs))


# ---- which device takes a node


def test_a_node_goes_where_its_weights_are_and_the_rest_follows():
    a, b, cpu = FakeDevice("A"), FakeDevice("B"), FakeDevice("CPU")
    x = source(8, 2)
    first = ops.mul_mat(weight(a, 8, 8), ops.rms_norm(x, 1e-5, name="norm"), name="first")
    between = ops.scale(first, 2.0, name="between")
    second = ops.mul_mat(weight(b, 8, 8), between, name="second")
    schedule = schedule_on([a, b, cpu], [second])
    assert [(s.device, [n.name for n in s.nodes]) for s in schedule.splits] == [
        (0, ["norm", "first", "between"]),
        (1, ["second"]),
    ]
    assert [(old.name, new.name) for s in schedule.splits for old, new in s.copies] == [("between", "B#between")]
    assert schedule.sizes[2] == 0, "nothing runs on the CPU, so the input needs no place there"


def test_a_refused_node_goes_to_the_cpu_and_back():
    a, cpu = FakeDevice("A", lacks=[Op.RMS_NORM]), FakeDevice("CPU")
    x = source(8, 2)
    w = weight(a, 8, 8)
    out = ops.mul_mat(w, ops.rms_norm(ops.mul_mat(w, x), 1e-5))
    schedule = schedule_on([a, cpu], [out])
    assert [s.device for s in schedule.splits] == [0, 1, 0]
    assert [len(s.copies) for s in schedule.splits] == [0, 1, 1]


def test_weights_on_a_device_that_lacks_the_product_are_carried_to_the_cpu():
    a, cpu = FakeDevice("A", lacks=[Op.MUL_MAT]), FakeDevice("CPU")
    x, w = source(8, 2), weight(a, 8, 8)
    schedule = schedule_on([a, cpu], [out := ops.mul_mat(w, x)])
    values = np.random.default_rng(1).normal(size=(2, 8)).astype(np.float32)
    schedule.set_input(x, values)
    schedule.run()
    np.testing.assert_allclose(
        schedule.get(out)[0, 0], values @ np.frombuffer(w.buffer.get(w), np.float32).reshape(8, 8).T, rtol=1e-5
    )  # fmt: skip


def test_a_node_that_nobody_computes_names_the_reasons():
    a, cpu = FakeDevice("A", lacks=[Op.SCALE]), FakeDevice("CPU", lacks=[Op.SCALE])
    with pytest.raises(UnsupportedError, match=r"no device computes SCALE 'twice' \(A: A lacks SCALE; CPU: CPU lacks"):
        schedule_on([a, cpu], [ops.scale(source(4), 2.0, name="twice")])


def test_a_destination_on_a_device_that_cannot_write_it_is_an_error():
    a, cpu = FakeDevice("A", lacks=[Op.CPY]), FakeDevice("CPU")
    cache = Tensor(GGMLType.F32, (4,), name="cache")
    a.alloc_buffer(cache.nbytes).place(cache, 0)
    with pytest.raises(UnsupportedError, match="A holds 'cache' and cannot compute CPY into it: A lacks CPY"):
        schedule_on([a, cpu], [ops.cpy(source(4), cache)])


# ---- inputs, copies, buffers


def test_inputs_travel_only_to_devices_that_read_them():
    a, b, cpu = FakeDevice("A"), FakeDevice("B"), FakeDevice("CPU")
    x, y, z = source(8, name="x"), source(8, name="y"), source(8, name="z")
    one = ops.add(ops.mul(x, weight(a, 8)), y)
    two = ops.add(ops.mul(one, weight(b, 8)), y)
    three = ops.add(ops.mul(two, weight(cpu, 8)), z)
    schedule = schedule_on([a, b, cpu], [three])
    for device in (a, b, cpu):
        device.written.clear()
    for tensor in (x, y, z):
        schedule.set_input(tensor, np.ones(8, np.float32))
    assert [set(d.written) for d in (a, b, cpu)] == [{"x", "y"}, {"y"}, {"z"}]


def test_a_device_begins_with_its_inputs_while_another_computes():
    events = []

    class Noting(FakeBackend):
        def flush(self):
            events.append(("flush", self.device.name))

        def compute(self, plan):
            events.append(("compute", self.device.name))
            super().compute(plan)

    far, cpu = FakeDevice("FAR"), FakeDevice("CPU")
    x = source(8, 2)
    out = ops.mul_mat(weight(far, 8, 8), ops.mul_mat(weight(cpu, 8, 8), x))
    out.flags |= Flag.OUTPUT
    schedule = Scheduler([Noting(far), Noting(cpu)]).schedule(build_forward([out]))
    schedule.set_input(x, np.ones((2, 8), np.float32))
    schedule.run()
    assert events == [("flush", "FAR"), ("compute", "CPU"), ("compute", "FAR")]


def test_on_one_device_nothing_is_copied_and_a_view_of_an_input_needs_no_second_place():
    cpu = FakeDevice("CPU")
    x = source(8, 2)
    schedule = schedule_on([cpu], [ops.scale(ops.reshape(x, 16), 2.0)])
    assert len(schedule.splits) == 1 and not schedule.splits[0].copies
    assert schedule.sizes == [2 * 64]


def test_the_same_tensor_is_carried_once_for_all_its_readers():
    a, b, cpu = FakeDevice("A"), FakeDevice("B"), FakeDevice("CPU")
    x = source(8)
    made = ops.mul(x, weight(a, 8), name="made")
    wb = weight(b, 8)
    out = ops.add(ops.mul(made, wb), ops.mul(wb, made))
    schedule = schedule_on([a, b, cpu], [out])
    assert [old.name for s in schedule.splits for old, _ in s.copies] == ["made"]


def test_schedules_share_a_buffer_and_survive_its_growth():
    cpu = FakeDevice("CPU")
    scheduler = Scheduler([cpu.open()])

    def doubling(n):
        x = source(n)
        out = ops.scale(x, 2.0)
        out.flags |= Flag.OUTPUT
        return x, out, scheduler.schedule(build_forward([out]))

    for n in (16, 1024, 16, 64):
        x, out, schedule = doubling(n)
        if n == 16:
            small = x, out, schedule
        schedule.set_input(x, np.arange(n, dtype=np.float32))
        schedule.run()
        assert (schedule.get(out).ravel() == 2 * np.arange(n)).all()
        x, out, schedule = small
        schedule.set_input(x, np.full(16, 3, np.float32))
        schedule.run()
        assert (schedule.get(out) == 6).all()
    assert scheduler.sizes == [2 * 4096]
    assert [b.size for b in cpu.buffers].count(0) == 1, "the buffer that was too small is freed"
    scheduler.close()
    assert all(b.size == 0 for b in cpu.buffers)


def test_a_compute_buffer_above_the_devices_limit_is_an_error():
    cpu = FakeDevice("CPU", max_size=100)
    schedule = schedule_on([cpu], [ops.scale(source(64), 2.0)])
    with pytest.raises(DeviceError, match="CPU: the compute buffer needs 512 bytes, a buffer has at most 100"):
        schedule.bind()


def test_an_abort_ends_the_run_between_splits():
    a, cpu = FakeDevice("A"), FakeDevice("CPU")
    x = source(8)
    out = ops.mul(ops.mul(x, weight(a, 8)), weight(cpu, 8))
    schedule = schedule_on([a, cpu], [out])
    schedule.set_input(x, np.ones(8, np.float32))
    schedule.scheduler.abort()
    with pytest.raises(ComputeError, match="aborted"):
        schedule.run()


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_spread_over_devices_gives_one_devices_result(data):
    """Random graphs whose weights lie on random devices, each of which may lack an op."""
    n_devices = data.draw(st.integers(1, 3))
    lacks = [data.draw(st.sets(st.sampled_from([Op.ADD, Op.RMS_NORM, Op.SCALE, Op.MUL_MAT]))) for _ in range(n_devices)]
    several = [FakeDevice(f"D{i}", lacks=lack) for i, lack in enumerate(lacks)] + [FakeDevice("CPU")]
    choices = [data.draw(st.integers(0, n_devices)) for _ in range(4)]
    recipe = data.draw(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 99), st.integers(0, 99)), max_size=14))

    def build(devices, homes):
        inputs = [source(8, 3, name="x"), source(8, 3, name="y")]
        weights = [weight(devices[home], 8, 8, seed=i) for i, home in enumerate(homes)]
        made = list(inputs)
        for kind, i, j in recipe:
            a, b, w = made[i % len(made)], made[j % len(made)], weights[j % len(weights)]
            made.append(
                [
                    lambda a=a, b=b: ops.add(a, b),
                    lambda a=a, w=w: ops.mul_mat(w, a),
                    lambda a=a: ops.rms_norm(a, 1e-5),
                    lambda a=a: ops.scale(a, 0.5),
                    lambda a=a: ops.reshape(ops.reshape(a, 24), 8, 3),
                    lambda a=a, w=w: ops.mul(a, ops.view(w, (8,), (), 32)),
                ][kind]()
            )
        out = ops.scale(made[-1], 1.0)
        read = build_forward([out]).leafs  # scheduling replaces sources by their copies
        schedule = schedule_on(devices, [out])
        for t, seed in zip(inputs, (1, 2), strict=True):
            if t in read:
                schedule.set_input(t, np.random.default_rng(seed).normal(size=(3, 8)).astype(np.float32))
        results = []
        for _ in range(2):
            schedule.run()
            results.append(schedule.get(out).copy())
        np.testing.assert_array_equal(*results)  # a second run with the same inputs: they were not written over
        return results[0]

    np.testing.assert_array_equal(build(several, choices), build([FakeDevice("CPU")], [0] * 4))


# ---- layers over devices


def test_layers_are_spread_in_proportion_to_free_memory():
    assert split_layers(7, [100, 300]) == [0, 0, 1, 1, 1, 1, 1, 1]
    assert split_layers(7, [100, 300], tensor_split=[1, 1]) == [0, 0, 0, 0, 1, 1, 1, 1]
    assert split_layers(7, [100, 300], tensor_split=[0, 1]) == [1] * 8
    assert split_layers(7, [100, 300], tensor_split=[3]) == [0] * 8
    assert split_layers(7, [100, 300], tensor_split=[0, 0]) == split_layers(7, [100, 300])
    assert split_layers(7, [100, 300], n_gpu_layers=4) == [None] * 4 + [0, 1, 1, 1]
    assert split_layers(7, [100, 300], n_gpu_layers=0) == [None] * 8
    assert split_layers(7, [100, 300], n_gpu_layers=99) == split_layers(7, [100, 300], n_gpu_layers=8)
    assert split_layers(2, []) == [None] * 3
    assert split_layers(2, [0, 0]) == [0, 0, 1]
    with pytest.raises(DeviceError, match="a tensor split over 3 devices, 2 are in use"):
        split_layers(7, [1, 1], tensor_split=[1, 1, 1])
    with pytest.raises(DeviceError, match="0 or more"):
        split_layers(7, [1, 1], tensor_split=[1, -1])


@settings(deadline=None)
@given(st.integers(1, 100), st.lists(st.integers(1, 2**40), min_size=1, max_size=5), st.integers(-1, 120))
def test_shares_are_contiguous_and_within_a_layer_of_the_proportion(n_layer, free, n_gpu_layers):
    homes = split_layers(n_layer, free, n_gpu_layers)
    offloaded = [h for h in homes if h is not None]
    assert len(homes) == n_layer + 1 and homes == [None] * (len(homes) - len(offloaded)) + sorted(offloaded)
    assert len(offloaded) == (n_layer + 1 if n_gpu_layers < 0 else min(n_gpu_layers, n_layer + 1))
    for device, count in Counter(offloaded).items():
        assert abs(count - len(offloaded) * free[device] / sum(free)) <= 1.001


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("model") / "tiny.gguf", n_layer=7, biases=True, rope_freqs=True)


def logits(path, cpu, devices=(), tokens=TOKENS, **options):
    load = {k: options.pop(k) for k in ("n_gpu_layers", "tensor_split") if k in options}
    model = Model.load(path, cpu=cpu, devices=devices, **load)
    context = Context(model, n_ctx=256, n_ubatch=4, **options)
    out = [context.decode(tokens, logits="all"), context.decode([3], logits="all")]
    context.close()
    model.close()
    return np.concatenate(out), model


@pytest.mark.parametrize("flash_attn", [True, False])
@pytest.mark.parametrize("n_gpu_layers", [0, 1, 3, 7, 99])
def test_logits_are_the_same_on_any_number_of_devices(model_path, flash_attn, n_gpu_layers):
    alone, _ = logits(model_path, FakeDevice("CPU"), flash_attn=flash_attn)
    assert np.isfinite(alone).all()
    a, b, cpu = FakeDevice("A", free=100), FakeDevice("B", free=300), FakeDevice("CPU")
    spread, model = logits(model_path, cpu, [a, b], n_gpu_layers=n_gpu_layers, flash_attn=flash_attn)
    np.testing.assert_array_equal(alone, spread)
    names = [d.name for d in model.layer_devices]
    assert (
        names
        == {
            0: ["CPU"] * 8,
            1: ["CPU"] * 7 + ["A"],  # device 0 begins at share 0
            3: ["CPU"] * 5 + ["A", "B", "B"],
            7: ["CPU"] + ["A"] * 2 + ["B"] * 5,
            99: ["A"] * 2 + ["B"] * 6,
        }[n_gpu_layers]
    )
    assert bool(a.computed) == ("A" in names) and bool(b.computed) == ("B" in names)
    assert all(buffer.size == 0 for d in (a, b, cpu) for buffer in d.buffers), "everything is freed"


@pytest.mark.parametrize("lacks", [[Op.FLASH_ATTN_EXT], [Op.ROPE, Op.GLU], [Op.MUL_MAT], [Op.ADD], [Op.GET_ROWS]])
def test_a_device_that_lacks_an_op_makes_no_difference(model_path, lacks):
    alone, _ = logits(model_path, FakeDevice("CPU"))
    a, b, cpu = FakeDevice("A", lacks=lacks), FakeDevice("B"), FakeDevice("CPU")
    spread, _ = logits(model_path, cpu, [a, b])
    np.testing.assert_array_equal(alone, spread)
    assert a.computed and b.computed and cpu.computed


def test_the_comparison_notices_activations_that_are_not_carried(model_path, monkeypatch):
    """A mutant: a scheduler that forgets every other copy between devices."""
    alone, _ = logits(model_path, FakeDevice("CPU"))
    count = itertools.count()
    monkeypatch.setattr(scheduler_module, "copy_across", lambda a, b: copy_across(a, b) if next(count) % 2 else None)
    spread, _ = logits(model_path, FakeDevice("CPU"), [FakeDevice("A"), FakeDevice("B")])
    assert next(count) > 2 and not np.array_equal(alone, spread)


def test_weights_come_in_buffers_of_at_most_the_devices_size(model_path):
    alone, _ = logits(model_path, FakeDevice("CPU"))
    a = FakeDevice("A", max_size=1 << 18)
    np.testing.assert_array_equal(alone, logits(model_path, FakeDevice("CPU"), [a])[0])
    assert len(a.buffers) > 3


def test_weights_on_the_cpu_are_not_copied_and_uploads_are_reported(model_path):
    cpu, a = FakeDevice("CPU"), FakeDevice("A")
    seen = []
    model = Model.load(model_path, cpu=cpu, devices=[a], n_gpu_layers=3, progress=lambda *p: seen.append(p))
    assert not cpu.buffers and not cpu.written
    layer = model.tensor("blk.0.attn_q.weight")
    assert layer.data == model.file.tensors["blk.0.attn_q.weight"].data.ctypes.data
    done = [d for d, _ in seen]
    total = sum(
        t.nbytes for name, t in model.file.tensors.items()
        if name.startswith(("blk.5.", "blk.6.", "output_norm", "token_embd", "rope_freqs"))
    )  # fmt: skip
    assert done == sorted(done) and seen[0] == (0, total) and seen[-1] == (total, total)
    assert a.written["rope_freqs.weight"] == 1 and a.written["token_embd.weight"] == 1
    model.close()


class IdleBackend(FakeBackend):
    def compute(self, plan: Plan) -> None:
        self.device.computed.append(0)


class IdleDevice(FakeDevice):
    def open(self, n_threads: int | None = None) -> IdleBackend:
        return IdleBackend(self)


def test_a_run_takes_as_many_python_calls_for_30_layers_as_for_1(tmp_path):
    def calls(n_layer):
        path = write_llama(tmp_path / f"{n_layer}.gguf", n_layer=n_layer)
        model = Model.load(path, cpu=IdleDevice("CPU"))
        context = Context(model, n_ctx=256)
        for token in (1, 2):
            context.decode([token])
        count = 0

        def profile(frame, event, arg):
            nonlocal count
            count += event in ("call", "c_call")

        sys.setprofile(profile)
        try:
            context.decode([3])
        finally:
            sys.setprofile(None)
        context.close()
        model.close()
        return count

    assert 0 < calls(30) == calls(1)


def test_abort_from_another_thread_ends_decode(model_path):
    started = threading.Event()

    class Signalling(FakeBackend):
        def compute(self, plan: Plan) -> None:
            started.set()
            ended.wait(10)
            super().compute(plan)

    class SignallingDevice(FakeDevice):
        def open(self, n_threads: int | None = None) -> FakeBackend:
            return Signalling(self)

    ended = threading.Event()
    model = Model.load(model_path, cpu=FakeDevice("CPU"), devices=[SignallingDevice("A")], n_gpu_layers=3)
    context = Context(model, n_ctx=256, n_ubatch=2)

    def interrupt():
        started.wait(10)
        context.abort()
        ended.set()

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(ComputeError, match="aborted"):
        context.decode(TOKENS)
    thread.join()
    assert context.n_past == 2, "what was completed stays"
    again = context.decode(TOKENS, n_past=0)
    context.clear()
    np.testing.assert_array_equal(again, context.decode(TOKENS))
    context.close()
    model.close()
