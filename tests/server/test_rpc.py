"""The server with its layers on two RPC servers, ours or stock ones, answers as it does without; and when they are gone it says so."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from programs import Newest
from pyggml_rpc.backend import devices_from_spec
from pyggml_rpc.server import Server
from pyggml_rpc.transport import Listener
from serving import Client, serving
from text_model import write_text_model

from pyggml.backend.cpu import CPUDevice
from pyggml.model.model import Model
from pyggml.runtime.idle_prompts import IdlePrompts

BODY = {"prompt": "hello world", "max_tokens": 16}
PROMPTS = [f"hello world, {i} times and a number of words more" for i in range(6)]


def answers(client: Client) -> dict[str, Any]:
    """Alone, streamed, together, with a prompt that slots have, that was put away, and that four choices share."""
    found: dict[str, Any] = {"alone": client.ok("/v1/completions", BODY)["choices"][0]["text"]}
    found["stream"] = "".join(c["text"] for e in client.stream("/v1/completions", BODY) for c in e["choices"])
    said: dict[str, str] = {}

    def ask(prompt: str) -> None:
        said[prompt] = client.ok("/v1/completions", {"prompt": prompt, "max_tokens": 12})["choices"][0]["text"]

    threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in PROMPTS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found["together"] = [said.get(prompt) for prompt in PROMPTS]
    for prompt in PROMPTS:
        ask(prompt)
    found["again"] = [said[prompt] for prompt in PROMPTS]
    found["choices"] = [c["text"] for c in client.ok("/v1/completions", {**BODY, "n": 4})["choices"]]
    return found


@contextlib.contextmanager
def over(path: Path, endpoints: list[str]) -> Iterator[Client]:
    model = Model.load(path, devices=devices_from_spec(",".join(endpoints)))
    with serving(model, n_slots=2, idle=IdlePrompts(None)) as client:
        yield client
    model.close()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_model(tmp_path_factory.mktemp("model") / "m.gguf", n_ctx=512)


@pytest.fixture(scope="module")
def wanted(path: Path) -> dict[str, Any]:
    local = Model.load(path, cpu=CPUDevice())
    with serving(local, n_slots=2, idle=IdlePrompts(None)) as client:
        found = answers(client)
    local.close()
    assert found["stream"] == found["alone"] and found["together"] == found["again"]
    assert found["choices"] == [found["alone"]] * 4
    return found


def test_layers_on_two_servers(path: Path, wanted: dict[str, Any]) -> None:
    with (
        Listener(Server([CPUDevice()]), "127.0.0.1", 0) as one,
        Listener(Server([CPUDevice()]), "127.0.0.1", 0) as two,
        over(path, [one.endpoint, two.endpoint]) as client,
    ):
        assert answers(client) == wanted
        for listener in (one, two):
            listener.close()
        status, found = client.post("/v1/completions", {**BODY, "cache_prompt": False})
        assert status == 503 and "cannot be computed" in found["error"]["message"]
        assert client.served.engine.idle and client.get("/health")[0] == 503


def test_layers_on_two_stock_servers(path: Path, wanted: dict[str, Any], newest: Newest) -> None:
    with newest.rpc_server() as one, newest.rpc_server() as two, over(path, [one.endpoint, two.endpoint]) as client:
        assert answers(client) == wanted
        for server in (one, two):
            assert server.count("graph_compute") + server.count("graph_recompute") > 10, "it has computed"
