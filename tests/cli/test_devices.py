"""Names of devices on the command line."""

import pytest
from pyggml_cli.devices import holder, offload_devices
from pyggml_rpc.server import Server
from pyggml_rpc.transport import Listener

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
