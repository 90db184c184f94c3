"""Names of devices on the command line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_devices import FakeDevice
from pyggml_cli import cli
from pyggml_cli.devices import holder, offload_devices
from pyggml_rpc.server import Server
from pyggml_rpc.transport import Listener

from pyggml import Llama
from pyggml.backend.reference import ReferenceDevice
from pyggml.errors import DeviceError


def test_llama_cpps_names_of_servers_memory_go_by_the_server() -> None:
    """There the number counts the devices of one server; here, and with -dev there, those of all servers."""
    with (
        Listener(Server([ReferenceDevice()]), "127.0.0.1", 0) as one,
        Listener(Server([ReferenceDevice(), ReferenceDevice()]), "127.0.0.1", 0) as two,
    ):
        found = offload_devices(f"{one.endpoint},{two.endpoint}")
        assert [device.name for device in found] == ["RPC0", "RPC1", "RPC2"]
        for name, wanted in (
            ("RPC1", 1), ("rpc2", 2), (f"RPC0[{one.endpoint}]", 0), (f"RPC0[{two.endpoint}]", 1), (f"RPC1[{two.endpoint}]", 2),
        ):  # fmt: skip
            assert holder(found, name) is found[wanted], name
        for name in (f"RPC1[{one.endpoint}]", "RPC0[127.0.0.1:1]", "RPC3", "RPC0["):
            with pytest.raises(DeviceError, match=r"unknown device .* available: RPC0, RPC1, RPC2"):
                holder(found, name)


def test_one_device_has_all_whatever_the_shares_of_several_are(
    call: Callable[..., Any], model: Path, reference: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = [FakeDevice("RPC0"), FakeDevice("RPC1")]
    monkeypatch.setattr("pyggml_cli.devices.extra_devices", lambda kind, spec: devices)
    flags = ("-m", model, "-p", "hello", "-n", 1, "--temp", 0, "--rpc", "x:1,y:2", "-ts", "0,1", "-mg", 0, "-sm")
    assert call(cli.main, *flags, "none").code == 0 and devices[0].computed and not devices[1].computed
    devices[0].computed.clear()
    assert call(cli.main, *flags, "layer").code == 0 and devices[1].computed and not devices[0].computed
    with Llama(
        model, devices=devices, split_mode=0, main_gpu=0, tensor_split=[0, 1], n_gpu_layers=9, verbose=False
    ) as llm:
        llm.eval([1])
    assert devices[0].computed
