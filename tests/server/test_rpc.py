"""The server with its layers on two RPC servers answers as it does without; and when they are gone it says so and goes on."""

from pathlib import Path

from pyggml_rpc.backend import devices_from_spec
from pyggml_rpc.server import Server
from pyggml_rpc.transport import Listener
from serving import serving
from text_model import write_text_model

from pyggml.backend.cpu import CPUDevice
from pyggml.model.model import Model

BODY = {"prompt": "hello world", "max_tokens": 16}


def test_layers_on_two_servers(tmp_path: Path) -> None:
    path = write_text_model(tmp_path / "m.gguf", n_ctx=512)
    local = Model.load(path, cpu=CPUDevice())
    with serving(local, n_slots=2) as client:
        wanted = client.ok("/v1/completions", BODY)["choices"][0]["text"]
    local.close()
    with Listener(Server([CPUDevice()]), "127.0.0.1", 0) as one, Listener(Server([CPUDevice()]), "127.0.0.1", 0) as two:
        model = Model.load(path, devices=devices_from_spec(f"{one.endpoint},{two.endpoint}"))
        with serving(model, n_slots=2) as client:
            assert client.ok("/v1/completions", BODY)["choices"][0]["text"] == wanted
            for listener in (one, two):
                listener.close()
            status, found = client.post("/v1/completions", {**BODY, "cache_prompt": False})
            assert status == 500 and "could not be computed" in found["error"]["message"]
            assert client.served.engine.idle and client.get("/health")[0] == 200
        model.close()
