"""The emulated GPU for the tests of the CUDA backend's own parts. Must not know a kernel."""

import pytest


@pytest.fixture
def device():
    from cuda_device import EmulatedDevice

    return EmulatedDevice()
