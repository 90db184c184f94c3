"""What happens to the others when one process of a cluster is killed: a clear end for clients, a free server."""

import re
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
from pyggml_rpc.memory import SHARE
from waiting import until

from pyggml.backend.base import extra_devices

GENERATE = ("-p", "Once upon a time", "-c", 4096, "-n", 4000, "--ignore-eos", "--temp", 0)
SECONDS = 20  # "within seconds", on a machine that also runs other tests
MIB = 1 << 20
LENT = 300  # MiB; a client with 4096 tokens needs about 200


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_server_ends_its_client_with_one_line(
    command: Callable[..., Any], serve: Callable[..., Any], smollm2: Any, killed: int
) -> None:
    servers = [serve("-t", 1), serve("-t", 1)]
    endpoints = ",".join(server.endpoint for server in servers)
    client = command("cli", "-m", smollm2, *GENERATE, "--rpc", endpoints)
    client.wait_for("Once upon a time.{40}")
    servers[killed].process.kill()
    assert client.wait(SECONDS) == 1
    lines = [line for line in client.err.splitlines() if line and not line.startswith("sending weights")]
    assert len(lines) == 1 and lines[0].startswith(f"error: RPC server {servers[killed].endpoint}: ")
    assert client.out.startswith("Once upon a time"), "what was generated stays"
    survivor = servers[1 - killed]
    again = command("cli", "-m", smollm2, "-p", "Hello", "-n", 2, "--temp", 0, "--rpc", survivor.endpoint)
    assert again.wait() == 0, again.err
    for server in servers:
        server.process.kill()


@pytest.mark.parametrize("moment", ["while it generates", "in a long prompt", "while weights travel"])
def test_a_killed_client_frees_the_server(
    command: Callable[..., Any], serve: Callable[..., Any], smollm2: Any, moment: str
) -> None:
    """The server lends enough for one such client and not for two."""
    server = serve("-m", LENT)
    arguments = ("cli", "-m", smollm2, "--rpc", server.endpoint)
    if moment == "while it generates":
        client = command(*arguments, *GENERATE)
        client.wait_for("Once upon a time.{40}")
    elif moment == "in a long prompt":
        client = command(*arguments, "-p", "word " * 4000, "-c", 4096, "-n", 1, "--temp", 0)
        client.wait_for("word word")
        time.sleep(0.3)
    else:
        client = command(*arguments, *GENERATE)
        until(lambda: used(server) > 50 * MIB)
    client.kill()
    until(lambda: used(server) < MIB, SECONDS)
    again = command(*arguments, "-p", "Hello", "-c", 4096, "-n", 2, "--temp", 0)
    assert again.wait() == 0, again.err
    assert not re.search("closed|fault|error|Traceback", server.process.err), (
        "a client's end is no matter of the server"
    )
    server.process.kill()


def test_two_such_clients_do_not_fit(command: Callable[..., Any], serve: Callable[..., Any], smollm2: Any) -> None:
    """A mutant of the test above: a server that kept a dead client's memory would say this."""
    server = serve("-m", LENT)
    arguments = ("cli", "-m", smollm2, "--rpc", server.endpoint)
    client = command(*arguments, *GENERATE)
    client.wait_for("Once upon a time.{40}")
    other = command(*arguments, "-p", "Hello", "-c", 4096, "-n", 2, "--temp", 0)
    assert other.wait() == 1
    assert server.endpoint in other.err.splitlines()[-1] and "no room" in other.err.splitlines()[-1]
    assert client.process.poll() is None, "the first client is not disturbed"
    client.kill()
    server.process.kill()


def used(server: Any) -> int:
    """Bytes of the server's memory that are lent, as a client sees it, who may have a share of the rest."""
    free, total = extra_devices("rpc", server.endpoint)[0].memory()
    assert total == LENT * MIB
    return total - round(free / SHARE)


def test_a_server_that_was_never_there_is_named(command: Callable[..., Any], smollm2: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        endpoint = f"127.0.0.1:{probe.getsockname()[1]}"
    client = command("cli", "-m", smollm2, "-p", "a", "--rpc", endpoint)
    assert client.wait(SECONDS) == 1
    assert (client.out, client.err) == ("", f"error: RPC server {endpoint}: connect: Connection refused\n")
