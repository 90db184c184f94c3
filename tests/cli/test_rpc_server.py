"""pyggml-rpc-server: what it says and how it ends."""

import re
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest
from pyggml_cli import rpc_server

from pyggml import jit
from pyggml.backend.cpu import CPUDevice
from pyggml.model.usual import usual_kernels


@pytest.fixture(scope="module", autouse=True)
def warm() -> None:
    """What a server on an empty cache says besides is not looked at here (e2e/test_cold_start.py)."""
    jit.wait(usual_kernels(CPUDevice()))


def started(process: Any) -> str:
    """All that it says up to the list of devices; a server that says nothing for a minute is killed."""
    watchdog = threading.Timer(60, process.kill)
    watchdog.start()
    said = ""
    while not re.search(r"Devices:\n  .*\n", said):
        line = process.stdout.readline()
        assert line, f"it ended: {said}{process.stderr.read()}"
        said += line
    watchdog.cancel()
    return said


@pytest.mark.parametrize(
    ("number", "flags", "version"),
    [
        (signal.SIGTERM, (), "8.0.0"),
        (signal.SIGINT, ("--protocol", "7"), "7.0.0"),
        (signal.SIGINT, ("--protocol", "8.0.0"), "8.0.0"),
        (signal.SIGTERM, ("--protocol", "7.0.0"), "7.0.0"),
    ],
)
def test_start_and_end(spawn: Callable[..., Any], number: int, flags: tuple[str, ...], version: str) -> None:
    process = spawn("rpc_server", "-p", 0, *flags)
    said = started(process)
    assert re.fullmatch(
        rf"using CPU backend\nStarting RPC server v{version}\n  endpoint       : 127\.0\.0\.1:\d+\n"
        r"  local cache    : n/a\nDevices:\n  CPU: .* \(\d+ MiB, \d+ MiB free\)\n",
        said,
    )
    port = int(said.split("127.0.0.1:")[1].split()[0])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(bytes([14, 24]) + bytes(7 + 24))
        assert client.recv(11, socket.MSG_WAITALL) == bytes([28]) + bytes(7) + bytes(map(int, version.split(".")))
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "")
    assert re.fullmatch(r"\S+ \S+ the server stops, with 1 client\n", err)


def test_memory_and_cache(spawn: Callable[..., Any], tmp_path: Any) -> None:
    env = {"PYGGML_CACHE": str(tmp_path)}
    said = started(spawn("rpc_server", "-p", 0, "-m", 64, "-c", "-t", 1, "-d", "cpu", "--no-warmup", env=env))
    assert "(64 MiB, 64 MiB free)" in said and f"local cache    : {tmp_path}/rpc\n" in said


def test_other_hosts_are_warned_of(spawn: Callable[..., Any]) -> None:
    process = spawn("rpc_server", "-p", 0, "-H", "0.0.0.0")
    started(process)
    process.terminate()
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert err.startswith("warning: 0.0.0.0 is open to other machines") and err.count("\n") == 1


def test_port_in_use(call: Callable[..., Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        outcome = call(rpc_server.main, "-p", port)
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith(f"error: cannot listen on 127.0.0.1:{port}: ") and outcome.err.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("-d", "GPU9"), 1, "unknown device 'GPU9'; available: CPU"),
        (("-d", "CPU,cpu"), 1, "named twice"),
        (("-H", "256.1.1.1"), 1, "256.1.1.1"),
        (("-p", "65536"), 2, "-p '65536': must be from 0 to 65535"),
        (("--protocol", "6"), 2, "--protocol '6': must be one of 7, 7.0.0, 8, 8.0.0"),
        (("-m", "0"), 2, "-m '0': must be at least 1"),
        (("-t", "0"), 2, "-t '0'"),
        (("--hosts", "x"), 2, "unknown flag --hosts; the nearest known one is --host"),
    ],
)
def test_mistakes(call: Callable[..., Any], args: tuple[str, ...], code: int, words: str) -> None:
    outcome = call(rpc_server.main, *args)
    assert outcome.code == code and outcome.out == ""
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1 and words in outcome.err


def test_what_an_operator_sees(spawn: Callable[..., Any]) -> None:
    """Who came, what was lent, who left and why, with the time; short connections only with -v."""
    from pyggml_rpc.client import Client
    from pyggml_rpc.wire import Command

    lines: dict[str, list[str]] = {}
    for flag in ("--greeting-timeout=10", "-v"):
        args = ("-v",) if flag == "-v" else ("--greeting-timeout", "10")
        process = spawn("rpc_server", "-p", 0, "-t", 1, "-m", 64, *args)
        endpoint = re.search(r"endpoint +: (\S+)", started(process)).group(1)  # type: ignore[union-attr]
        for _ in range(3):
            client = Client(endpoint, 5, 5, 10)
            client.ask(Command.DEVICE_COUNT)
            client.close()
        heavy, bad = Client(endpoint, 5, 5, 10), Client(endpoint, 5, 5, 10)
        for client in (heavy, bad):
            client.ask(Command.ALLOC_BUFFER, client.protocol.pack(Command.ALLOC_BUFFER, device=0, size=10 << 20))
        with pytest.raises(Exception, match=r"its log says why|connection broke"):
            bad.ask(Command.BUFFER_GET_BASE, client.protocol.pack(Command.BUFFER_GET_BASE, remote_ptr=5))
        process.terminate()
        _, err = process.communicate(timeout=30)
        assert process.returncode == 0
        lines[flag] = [re.sub(r"127\.0\.0\.1:\d+", "PEER", line) for line in err.splitlines()]
    few, many = lines.values()
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "
    assert all(re.match(stamp, line) for line in (*few, *many))
    said = [re.sub(stamp, "", line) for line in few]
    assert said[:2] == ["PEER: came, and was lent 10.0 MiB of CPU"] * 2
    assert said[2].startswith("PEER: connection closed: BUFFER_GET_BASE: 0x5 is not a buffer of this connection (")
    assert said[3] == "the server stops, with 1 client"
    assert re.fullmatch(
        r"PEER: connection closed: the server stops \(\d+\.\d s, 0 graphs, 10\.0 MiB lent at most, .*\)", said[4]
    )
    assert len(said) == 5 and sum("connected" in line for line in many) >= 5


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--client-share", "0"), "must be from 1 to 100"),
        (("--client-share", "101"), "must be from 1 to 100"),
        (("--max-clients", "0"), "must be from 1 to 4096"),
        (("--max-per-address", "-1"), "must be at least 1"),
        (("--greeting-timeout", "0"), "must be from 0.1 to 604800 seconds"),
        (("--graph-timeout", "nan"), "must be from 0 to 604800 seconds"),
        (("--idle-timeout", "inf"), "must be from 0 to 604800 seconds"),
        (("--idle-timeout", "soon"), "must be a number"),
        (("--cache-limit", "0"), "must be at least 1"),
    ],
)
def test_limits_have_limits(call: Callable[..., Any], args: tuple[str, ...], words: str) -> None:
    outcome = call(rpc_server.main, *args)
    assert outcome.code == 2 and outcome.out == ""
    assert outcome.err.startswith(f"error: {args[0]} '{args[1]}'") and words in outcome.err


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_an_ipv6_address(spawn: Callable[..., Any], host: str) -> None:
    """With and without brackets; what is printed can be given to --rpc, and nobody is warned of the machine itself."""
    from pyggml_rpc.backend import devices_from_spec

    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"this machine has no IPv6: {error}")
    process = spawn("rpc_server", "-p", 0, "-H", host, "-m", 64, "-t", 1)
    endpoint = re.search(r"endpoint +: (\S+)", started(process)).group(1)  # type: ignore[union-attr]
    assert re.fullmatch(r"\[::1\]:\d+", endpoint)
    assert [device.name for device in devices_from_spec(endpoint)] == ["RPC0"]
    process.terminate()
    _, err = process.communicate(timeout=30)
    assert (process.returncode, "warning" in err) == (0, False)
