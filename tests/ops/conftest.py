"""The devices that op tests run on."""

import importlib.util
from collections.abc import Generator
from pathlib import Path

import pytest
from op_shares import seen
from peer import Peer
from peer_ops import PeerDevice

from pyggml.backend.base import Device
from pyggml.kernels.cuda import FAMILIES

CUDA_FILES = set(FAMILIES.values())


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """A test whose cases are all refused has shown nothing of a device (op_shares.py)."""
    seen.begin()
    result = yield
    verdict = seen.end()
    assert not verdict.wrong, "; ".join(verdict.wrong)
    if verdict.absent:
        pytest.skip(verdict.absent)
    return result


@pytest.fixture(scope="session")
def peer_device(peer: Peer) -> PeerDevice:
    return PeerDevice(peer.lib_dir)


@pytest.fixture(scope="session")
def cpu_device() -> Device:
    if importlib.util.find_spec("pyggml.backend.cpu") is None:
        pytest.skip("there is no pyggml.backend.cpu")
    from pyggml.backend.cpu import CPUDevice

    return CPUDevice()


@pytest.fixture(scope="session")
def cuda_device() -> Device:
    """The CUDA backend with an emulated GPU."""
    if importlib.util.find_spec("numba_cuda") is None:
        pytest.skip("numba-cuda is not installed: pip install '.[test,cuda]'")
    from cuda_device import EmulatedDevice

    return EmulatedDevice()


@pytest.fixture(scope="session")
def gpu_device(card: Device) -> Device:
    return card


@pytest.fixture(scope="session", params=["peer", "cpu", "cuda", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Device:
    """Each device that must do what the reference does: the stock ggml (the test of the reference) and ours."""
    found: Device = request.getfixturevalue(f"{request.param}_device")
    return found


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests of ops for which the CUDA backend has no file are not asked of it: `why_not` refuses those ops by name, which
    test_supports.py checks."""
    here = Path(__file__).parent
    absent = []
    for item in items:
        on = getattr(item, "callspec", None) and item.callspec.params.get("device")  # type: ignore[attr-defined]
        if (
            item.path.parent == here
            and on in ("cuda", "gpu")
            and item.path.stem.removeprefix("test_") not in CUDA_FILES
        ):
            absent.append(item)
    if absent:
        config.hook.pytest_deselected(items=absent)
        items[:] = [item for item in items if item not in absent]
