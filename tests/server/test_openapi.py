"""/openapi.json tells what there is; and schemathesis tries to break every route that it names, while a stream runs on unharmed."""

import ast
import inspect
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from pyggml_server import app, openapi
from serving import Client, serving

from pyggml.model.model import Model

SECONDS = 45  # for schemathesis
PROMPT = "a text that goes on and on"


def test_every_route_is_told_of(model: Model) -> None:
    with serving(model, n_slots=1, metrics=True) as client:
        status, found = client.get("/openapi.json")
        assert status == 200 and found["openapi"].startswith("3.1")
        told = {(path, method.upper()) for path, methods in found["paths"].items() for method in methods}
        there = {(r.path, m) for r in app.ROUTES for m in (r.methods or ()) if m != "HEAD"}
        away = {path for path, _ in there - told}
        assert not told - there
        assert away == {
            "/openapi.json", "/v1/embeddings", "/embedding", "/embeddings", "/rerank", "/reranking", "/v1/rerank", "/v1/reranking"
        }  # fmt: skip
        for path, methods in found["paths"].items():
            for method, operation in methods.items():
                assert operation["summary"], path
                assert ("requestBody" in operation) == (method == "post"), path
    with serving(model, pooling="mean", slots=False) as other:
        paths = other.get("/openapi.json")[1]["paths"]
        assert "/v1/embeddings" in paths and not {"/v1/completions", "/v1/rerank", "/slots", "/metrics"} & set(paths)
    with serving(model, n_slots=1, api_keys=("k",)) as closed:
        assert closed.get("/openapi.json")[0] == 401
        assert closed.get("/openapi.json", authorization="Bearer k")[1]["security"] == [{"key": []}]


def test_every_field_that_is_read_is_told_of() -> None:
    """The names that the routes read from bodies are those of the schemas."""
    known = set()

    def collect(schema: object) -> None:
        if isinstance(schema, dict):
            known.update(schema.get("properties", {}))
            for value in schema.values():
                collect(value)
        elif isinstance(schema, list):
            for value in schema:
                collect(value)

    collect(list(openapi.BODIES.values()))
    folder = Path(inspect.getfile(app)).parent
    read = set()
    names = ("text", "boolean", "integer", "number", "choice", "items", "texts", "object", "objects", "raw", "has")
    for name in (
        "requests",
        "sampling",
        "budget",
        "chat",
        "openai",
        "native_completion",
        "anthropic",
        "responses",
        "embeddings",
        "slots",
    ):
        for node in ast.walk(ast.parse((folder / f"{name}.py").read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in names:
                read |= {
                    arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant) and isinstance(arg.value, str)
                }
    refused = {"functions", "function_call", "suffix", "previous_response_id", "conversation", "background", "dimensions",
               "multimodal_data", "schema", "refusal", "texts", "return_text", "properties"}  # fmt: skip
    assert read - known <= refused, read - known - refused


@pytest.mark.slow
def test_schemathesis_breaks_nothing(model: Model, tmp_path: Path) -> None:
    with serving(
        model, n_slots=3, n_ctx=3 * 256, metrics=True, slot_folder=str(tmp_path), ping=0.05, n_threads=1
    ) as client:
        wanted = client.ok("/v1/completions", {"prompt": PROMPT, "max_tokens": 60, "ignore_eos": True})["choices"][0][
            "text"
        ]
        wrong: list[str] = []
        done = threading.Event()

        def stream_on() -> None:
            while not done.is_set():
                body = {"prompt": PROMPT, "max_tokens": 60, "ignore_eos": True}
                said = "".join(c["text"] for e in client.stream("/v1/completions", body) for c in e["choices"])
                if said != wanted:
                    wrong.append(said)

        thread = threading.Thread(target=stream_on)
        thread.start()
        try:
            found = fuzz(client)
        finally:
            done.set()
            thread.join(60)
        assert found.returncode == 0, found.stderr[-2000:] + found.stdout[-6000:]
        assert "Test cases" in found.stdout, found.stdout[-2000:]
        assert not wrong and not thread.is_alive()
        assert (
            client.ok("/v1/completions", {"prompt": PROMPT, "max_tokens": 60, "ignore_eos": True})["choices"][0]["text"]
            == wanted
        )


def fuzz(client: Client) -> "subprocess.CompletedProcess[str]":
    argv = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{client.address}/openapi.json"),
        *(
            "--checks",
            "not_a_server_error",
            "--phases",
            "coverage,fuzzing",
            "--max-time",
            str(SECONDS),
            "--max-examples",
            "25",
        ),
        *(
            "--suppress-health-check",
            "all",
            "--generation-deterministic",
            "--no-color",
        ),
        *("--request-timeout", "20", "--warnings", "off", "--continue-on-failure"),
    ]
    return subprocess.run(argv, capture_output=True, text=True, timeout=4 * SECONDS, cwd="/", check=False)
