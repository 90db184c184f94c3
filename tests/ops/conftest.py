"""The devices that op tests run on. Must not know any op."""

import importlib.util

import pytest
from peer import Peer
from peer_ops import PeerDevice

from pyggml.backend.base import Device


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
def gpu_device() -> Device:
    """A real GPU."""
    from pyggml.backend.cuda import cuda_devices, why_no_cuda

    reason = why_no_cuda()
    if reason is not None:
        pytest.skip(reason)
    return cuda_devices()[0]


@pytest.fixture(scope="session", params=["peer", "cpu", "cuda", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Device:
    """Each device that must do what the reference does: the stock ggml (the test of the reference) and ours."""
    found: Device = request.getfixturevalue(f"{request.param}_device")
    return found
