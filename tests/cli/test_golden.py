"""The README's first commands on the real model, as processes of their own."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# At each of these steps the first choice leads by more than 1.5: rounding, which differs between CPU levels, cannot
# turn it. (After "Hello, my name is" two continuations are 0.03 apart.)
PROMPT = "1, 2, 3, 4, 5, 6, 7,"
GOLDEN = PROMPT + " 8, 9, 10, 11, 12, 13, 1"


def run(*args: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "pyggml_cli.cli", *map(str, args)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=600)


@pytest.fixture(scope="module")
def greedy(smollm2: Path) -> Callable[..., Any]:
    return lambda *args: run("-m", smollm2, "-p", PROMPT, "--temp", 0, "-c", 256, *args)


def test_golden_text(greedy: Callable[..., Any]) -> None:
    greedy("-n", 1)  # a first start says on stderr that it compiles
    done = greedy("-n", 24, "--no-perf")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == GOLDEN


def test_a_second_start_compiles_nothing(greedy: Callable[..., Any], smollm2: Path) -> None:
    assert greedy("-n", 2).returncode == 0
    code = f"""
import sys
from pyggml import jit
from pyggml_cli import cli
assert cli.main({["-p", PROMPT, "-n", "2", "--temp", "0", "-c", "256", "-m"]!r} + sys.argv[1:]) == 0
assert jit.Counts.compiled == 0 < jit.Counts.loaded, (jit.Counts.compiled, jit.Counts.loaded)
assert "numba" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code, str(smollm2)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_two_servers_give_the_same_text(greedy: Callable[..., Any], spawn: Callable[..., Any]) -> None:
    servers = [spawn("rpc_server", "-p", 0) for _ in range(2)]
    endpoints = []
    for server in servers:
        for line in iter(server.stdout.readline, ""):
            if "endpoint" in line:
                endpoints.append(line.split()[-1])
                break
    assert len(endpoints) == 2
    done = greedy("-n", 24, "--rpc", ",".join(endpoints), "-ngl", 99)
    assert (done.returncode, done.stdout) == (0, GOLDEN)
    listed = run("--list-devices", "--rpc", ",".join(endpoints))
    assert [line.split(":")[0].strip() for line in listed.stdout.splitlines()[1:]] == ["CPU", "RPC0", "RPC1"]
    for server in servers:
        server.terminate()
        assert server.wait(timeout=30) == 0


def test_a_dead_server_is_one_line(smollm2: Path, spawn: Callable[..., Any]) -> None:
    server = spawn("rpc_server", "-p", 0)
    endpoint = next(line.split()[-1] for line in iter(server.stdout.readline, "") if "endpoint" in line)
    args = ("-m", smollm2, "-p", PROMPT, "-n", 2000, "--ignore-eos", "-c", 4096)
    client = spawn("cli", *args, "--rpc", endpoint, "--no-display-prompt")
    assert client.stdout.read(1)  # it is generating
    server.kill()
    _, err = client.communicate(timeout=60)
    assert client.returncode == 1
    lines = [line for line in err.splitlines() if not line.endswith(" ...")]  # less the progress of loading
    assert len(lines) == 1 and lines[0].startswith("error: ") and endpoint in lines[0]


def test_python_api_on_a_server(smollm2: Path, spawn: Callable[..., Any]) -> None:
    from pyggml import Llama

    server = spawn("rpc_server", "-p", 0)
    endpoint = next(line.split()[-1] for line in iter(server.stdout.readline, "") if "endpoint" in line)
    with Llama(smollm2, rpc_servers=endpoint, n_ctx=256, verbose=False) as llm:
        assert [device.name for device in llm.context.model.devices] == ["RPC0"]
        assert PROMPT + llm(PROMPT, max_tokens=24, temperature=0, repeat_penalty=1.0)["choices"][0]["text"] == GOLDEN


def test_benchmark_of_the_real_model(smollm2: Path) -> None:
    command = [sys.executable, "-m", "pyggml_cli.bench", "-m", smollm2, "-p", "16", "-n", "4", "-r", "2"]
    done = subprocess.run(list(map(str, command)), capture_output=True, encoding="utf-8", timeout=600)
    assert done.returncode == 0, done.stderr
    rows = done.stdout.splitlines()[2:]
    assert [row.split("|")[6].strip() for row in rows] == ["pp16", "tg4"]
    assert all("llama 135M Q4_1" in row and "92.10 MiB" in row and "134.52 M" in row for row in rows)
