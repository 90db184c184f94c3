"""Layers over several devices: a few of each device's are enough, and come out as if all were built. Random layers on GPUs that
take notes, on servers and on the CPU; the devices' own parts of the proof are tested beside them."""

from collections.abc import Iterator

import pytest
from few_compare import assert_same
from mutants import Mutant, mutate
from pyggml_rpc.backend import devices_from_spec
from pyggml_rpc.server import Server
from pyggml_rpc.transport import Listener
from random_layers import compare, compare_many

from pyggml.backend.base import Device
from pyggml.backend.cpu import CPUDevice
from pyggml.backend.scheduler import Schedule, Scheduler
from pyggml.dtypes import GGMLType


def recording(number: int) -> Device:
    pytest.importorskip("numba_cuda", reason="numba-cuda is not installed: pip install '.[cuda]'")
    from cuda_recording import RecordingGPU

    from pyggml.backend.cuda.device import CudaDevice

    return CudaDevice(RecordingGPU(number=number))


@pytest.fixture(
    scope="module", params=["two GPUs", "a GPU and the CPU", "a server and the CPU", "two devices of a server"]
)
def scheduler(request: pytest.FixtureRequest) -> Iterator[Scheduler]:
    """The two devices of its name, and the CPU."""
    with Listener(Server([CPUDevice(), CPUDevice("CPU2")], n_threads=1), port=0) as listener:
        used = {
            "two GPUs": lambda: [recording(0), recording(1)],
            "a GPU and the CPU": lambda: [recording(0)],
            "a server and the CPU": lambda: devices_from_spec(listener.endpoint)[:1],
            "two devices of a server": lambda: devices_from_spec(listener.endpoint),
        }[request.param]()
        backends = [device.open() for device in (*used, CPUDevice())]
        made = Scheduler(backends)
        yield made
        made.close()
        for backend in backends:
            backend.close()


def test_random_layers_come_out_as_if_all_were_built(scheduler: Scheduler) -> None:
    compare_many(scheduler, assert_same, 80, cut=True)


P = ("product", 0, GGMLType.F32)


@pytest.mark.parametrize("cut", [5, -5])
def test_a_few_layers_of_each_are_enough(scheduler: Scheduler, cut: int) -> None:
    assert compare(scheduler, [[P]], [0] * 10, assert_same, cut)


def test_where_one_devices_layers_are_not_alike_those_of_the_other_are(scheduler: Scheduler) -> None:
    kinds = [[P, *[("norm", 0)] * i, ("add", 1, 1), P] for i in range(4)]
    assert compare(scheduler, kinds, [0, 1, 2, 3, *[0] * 7], assert_same, 4)


def test_a_plan_has_no_nodes_beyond_its_last_layers(scheduler: Scheduler) -> None:
    """The layers before the cut end in one that has fewer nodes than the one before it."""
    kinds = [[("rope", 0, 0)], [("store", 0), ("store", 0), ("rope", 0, 1), ("rope", 0, 0)]]
    compare(scheduler, kinds, [1, 0, 1, 1, 0, 1, 1, 0, 1, 1, 0], assert_same, -2)


BOTH: Mutant = (Schedule, "_watch", "home.repeats is not None", "False")


def test_two_runs_on_one_device_are_not_mixed_up(scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers without products have no device of their own: the CPU computes all of them, or a GPU."""
    compare(scheduler, [[]], [0] * 10, assert_same, 5)
    mutate(monkeypatch, BOTH)
    with pytest.raises(AssertionError):
        compare(scheduler, [[]], [0] * 10, assert_same, 5)
