"""The GPUs for the tests of the CUDA backend's own parts."""

import pytest


@pytest.fixture(params=["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def either(request):
    """An emulated GPU, and with `pytest -m gpu` a real one."""
    return request.getfixturevalue("device" if request.param == "emulated" else "card")


@pytest.fixture
def device():
    from cuda_device import EmulatedDevice

    return EmulatedDevice()
