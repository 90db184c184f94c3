"""An RPC server that ends, and starts again: the server says so, and goes on by itself with the weights placed there anew."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pyggml_rpc.backend import devices_from_spec
from pyggml_server.served import Served
from pyggml_server.settings import Settings
from served_process import running
from serving import Client, serving_at
from text_model import write_text_model
from waiting import until as until_within

from pyggml.backend.cpu import CPUDevice
from pyggml.model.model import Model
from pyggml.runtime.batcher import Batcher
from pyggml.runtime.context import Context
from pyggml.runtime.draft_model import DraftModel
from pyggml.sampler import SamplerParams
from pyggml.tokenizer import Tokenizer

BODY = {"prompt": "hello world", "max_tokens": 24, "ignore_eos": True, "temperature": 0}
LONG = {**BODY, "max_tokens": 1900}
PATIENCE = 150.0  # seconds: pauses between tries to load a model grow while an RPC server starts on a busy machine
GONE = "cannot be computed: RPC server {}: "
BACK = "is loaded again\n"


def until(condition: Callable[[], bool]) -> None:
    until_within(condition, PATIENCE)


class RpcProcess:
    """`pyggml-rpc-server` at a port that it keeps from one start to the next."""

    def __init__(self) -> None:
        self.port = "0"
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "pyggml_cli.rpc_server", "-p", self.port, "-t", "1"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.endpoint = next(line for line in self.process.stdout if "endpoint" in line).split(":", 1)[1].strip()
        self.port = self.endpoint.rsplit(":", 1)[1]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def rpc() -> Iterator[RpcProcess]:
    made = RpcProcess()
    yield made
    made.kill()


@contextlib.contextmanager
def served(rpc: RpcProcess, log: Path, *flags: str) -> Iterator[Client]:
    with open(log, "w") as stderr, running("--rpc", rpc.endpoint, "-c", "2048", *flags, stderr=stderr) as (_, client):
        yield client


def text(client: Client, **more: Any) -> str:
    return str(client.ok("/v1/completions", {**BODY, **more})["choices"][0]["text"])


def cut_off(client: Client, rpc: RpcProcess, **more: Any) -> dict[str, Any]:
    """The error that ends a stream whose RPC server is killed meanwhile."""
    with client.open_stream("/v1/completions", {**LONG, **more}) as events:
        next(events)
        rpc.kill()
        *_, last = events
    error: dict[str, Any] = last["error"]
    return error


def check(error: dict[str, Any], rpc: RpcProcess) -> None:
    assert (error["code"], error["type"]) == (503, "unavailable_error")
    assert error["message"].startswith("the model cannot be ") and rpc.port not in error["message"]


def test_the_model_comes_back_with_its_rpc_server(tmp_path: Path, rpc: RpcProcess) -> None:
    path, log = str(write_text_model(tmp_path / "m.gguf", n_ctx=2048)), tmp_path / "log"
    with served(rpc, log, "-m", path, "-np", "1") as client:
        before = text(client)
        check(cut_off(client, rpc), rpc)
        for status, found in (client.get("/health"), client.post("/v1/completions", BODY), client.get("/health")):
            assert status == 503
            check(found["error"], rpc)
        assert client.get("/props")[0] == client.get("/v1/models")[0] == 200
        rpc.start()
        until(lambda: client.get("/health")[0] == 200)  # nobody asks for anything else
        assert text(client) == before

        rpc.kill()
        rpc.start()
        assert text(client) == before, "who asks after it was started again notices nothing"

        rpc.kill()
        assert client.get("/health")[0] == 503, "nobody has asked for anything since"
        rpc.start()
        until(lambda: client.post("/v1/completions", BODY)[0] == 200)
        assert text(client) == before and client.get("/health")[0] == 200
    told = log.read_text()
    assert told.count(GONE.format(rpc.endpoint)) == told.count(BACK) == 3, told
    assert "Traceback" not in told and "a step failed" not in told


def test_a_router_unloads_what_has_lost_its_rpc_server(tmp_path: Path, rpc: RpcProcess) -> None:
    folder, log = tmp_path / "models", tmp_path / "log"
    folder.mkdir()
    write_text_model(folder / "a.gguf", n_ctx=2048)

    def status(client: Client) -> dict[str, Any]:
        found: dict[str, Any] = client.get("/v1/models")[1]["data"][0]["status"]
        return found

    with served(rpc, log, "--models-dir", str(folder), "-np", "1") as client:
        before = text(client, model="a")
        check(cut_off(client, rpc, model="a"), rpc)
        until(lambda: status(client) == {"value": "unloaded", "failed": True, "exit_code": 1})
        code, found = client.post("/v1/completions", {**BODY, "model": "a"})
        assert code == 500 and "cannot be loaded: RPC server: connect" in found["error"]["message"]
        rpc.start()
        assert text(client, model="a") == before and status(client) == {"value": "loaded"}

        rpc.kill()
        until(lambda: status(client)["value"] == "unloaded")  # nobody has asked for anything since
        rpc.start()
        assert text(client, model="a") == before

        rpc.kill()
        rpc.start()
        assert text(client, model="a") == before
    told = log.read_text()
    assert told.count(GONE.format(rpc.endpoint)) == told.count(BACK) == 3, told


def test_embeddings(tmp_path: Path, rpc: RpcProcess) -> None:
    path, log = str(write_text_model(tmp_path / "m.gguf", n_ctx=512)), tmp_path / "log"

    def ask(client: Client) -> tuple[int, Any]:
        return client.post("/v1/embeddings", {"input": ["hello world"] * 8})

    with served(rpc, log, "-m", path, "--embedding", "--pooling", "mean") as client:
        before = ask(client)
        assert before[0] == 200
        rpc.kill()
        status, found = ask(client)
        assert status == 503
        check(found["error"], rpc)
        rpc.start()
        until(lambda: client.get("/health")[0] == 200)
        assert ask(client) == before


@contextlib.contextmanager
def with_smaller_model(path: Path, rpc: RpcProcess) -> Iterator[tuple[Client, Any]]:
    """On the CPU; what guesses for it is on the RPC server, which is the second result."""
    with (
        contextlib.closing(Model.load(path, cpu=CPUDevice())) as model,
        contextlib.closing(Model.load(path, devices=devices_from_spec(rpc.endpoint))) as draft_model,
        contextlib.closing(Context(model, 2048)) as context,
        contextlib.closing(Context(draft_model, 2048)) as small,
    ):
        batcher = Batcher(context, context.n_ubatch)
        batcher.places[0].drafter = DraftModel(small, 4).drafter()
        tokenizer = Tokenizer.from_metadata(model.file.metadata)
        settings = Settings(port=0, sampling=SamplerParams(temp=0.0), grace=0.5)
        with serving_at(Served(model, batcher, tokenizer, settings, small=small)) as client:
            yield client, draft_model.devices[0]


def moves(client: Client) -> bool:
    counters = client.served.engine.counters
    steps = counters.steps
    time.sleep(0.3)
    return bool(counters.steps > steps)


@pytest.mark.parametrize("n", [1, 200])
def test_a_smaller_model_whose_rpc_server_hangs_keeps_nobody_from_the_end(
    tmp_path: Path, rpc: RpcProcess, n: int
) -> None:
    path = write_text_model(tmp_path / "m.gguf", n_ctx=2048)
    with with_smaller_model(path, rpc) as (client, device), client.open_stream("/v1/completions", LONG) as events:
        for _ in range(n):
            next(events)
        os.kill(rpc.process.pid, signal.SIGSTOP)
        until(lambda: not moves(client))
        computing, began = device.client.computing, time.monotonic()
        client.served.close()
        assert time.monotonic() - began < 10
        *_, last = events
        assert last["error"]["message"] == "the server is ending"
        assert (device.lost is None) == computing, "a computation is aborted, and the connection goes on"


def test_a_smaller_model_whose_rpc_server_is_gone(tmp_path: Path, rpc: RpcProcess) -> None:
    with with_smaller_model(write_text_model(tmp_path / "m.gguf", n_ctx=2048), rpc) as (client, _):
        check(cut_off(client, rpc), rpc)
        assert client.get("/health")[0] == 503
