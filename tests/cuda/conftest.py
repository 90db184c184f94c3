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


@pytest.fixture
def fake(monkeypatch):
    """A machine with two GPUs and nothing wrong, of which nothing wrong is asked."""
    from cuda_fake_driver import FakeDriver

    import pyggml.backend.cuda
    from pyggml.backend.cuda import compiled, driver

    found = FakeDriver(2)
    monkeypatch.setattr(driver, "_driver", lambda: found)
    monkeypatch.setattr(driver, "toolkit", lambda: 13)
    monkeypatch.setattr(pyggml.backend.cuda, "missing", lambda: None)
    monkeypatch.setattr(compiled, "cubin", lambda spec, cc: b"machine code")
    yield found
    assert not found.wrong, found.wrong
