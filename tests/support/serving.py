"""A server in this process for tests, and a small client for it: real sockets on the loopback address."""

import contextlib
import http.client
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("uvicorn", reason="uvicorn is not installed: pip install '.[server]'")

from pyggml_server.serve import Service, serve
from pyggml_server.served import Served
from pyggml_server.settings import Settings

from pyggml.model.lora import Adapter
from pyggml.model.model import Model
from pyggml.runtime.batcher import Batcher
from pyggml.runtime.context import Context
from pyggml.runtime.drafter import Drafter
from pyggml.runtime.embedder import Embedder
from pyggml.runtime.idle_prompts import IdlePrompts
from pyggml.sampler import SamplerParams
from pyggml.tokenizer import Tokenizer

TIMEOUT = 120


class Client:
    """Each request has a connection of its own."""

    def __init__(self, address: str, served: Service | None = None) -> None:
        parts = urlsplit(address)
        assert parts.hostname is not None and parts.port is not None
        self.address, self.host, self.port, self.prefix = address, parts.hostname, parts.port, parts.path
        self.served: Any = served

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.host, self.port, timeout=TIMEOUT)

    def raw(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        connection = self.connection()
        try:
            connection.request(method, self.prefix + path, body, headers or {})
            response = connection.getresponse()
            return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> tuple[int, Any]:
        status, _, data = self.raw("GET", path, headers=headers)
        return status, json.loads(data)

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        status, _, data = self.raw("POST", path, json.dumps(body).encode(), headers)
        return status, json.loads(data)

    def ok(self, path: str, body: Any) -> Any:
        status, answer = self.post(path, body)
        assert status == 200, answer
        return answer

    @contextlib.contextmanager
    def open_stream(self, path: str, body: Any, **headers: str) -> Iterator[Iterator[Any]]:
        """The events of a stream, read one by one; at the end the connection is closed, whatever is left."""
        connection = self.connection()
        try:
            connection.request("POST", self.prefix + path, json.dumps({**body, "stream": True}).encode(), headers)
            response = connection.getresponse()
            assert response.status == 200, response.read()
            yield _events(response)
        finally:
            connection.close()

    def stream(self, path: str, body: Any) -> list[Any]:
        with self.open_stream(path, body) as events:
            return list(events)


def _events(response: http.client.HTTPResponse) -> Iterator[Any]:
    for line in response:
        text = line.decode().rstrip("\n")
        if text.startswith("data: ") and text != "data: [DONE]":
            yield json.loads(text.removeprefix("data: "))
        else:
            assert text in ("", "data: [DONE]", ": ping") or text.startswith("event: "), text


@contextlib.contextmanager
def serving(
    model: Model,
    *,
    n_slots: int = 4,
    n_ctx: int = 1024,
    kv_unified: bool = False,
    shifts: bool = False,
    template: str | None = None,
    sampling: SamplerParams | None = None,
    adapters: list[tuple[Adapter, float]] | None = None,
    pooling: str | None = None,
    make_drafter: Callable[[], Drafter | None] = lambda: None,
    place_drafter: Callable[[int, Context], Drafter | None] = lambda seq, context: None,
    idle: IdlePrompts | None = None,
    n_threads: int | None = None,
    **settings: Any,
) -> Iterator[Client]:
    """Greedy by default, on any free port; with `pooling` it makes embeddings."""
    tokenizer = Tokenizer.from_metadata(model.file.metadata)
    made = Settings(port=0, sampling=sampling or SamplerParams(temp=0.0), grace=1.0, **settings)
    if pooling is not None:
        embedder = Embedder(model, pooling=pooling)
        with serving_at(Served(model, None, tokenizer, made, embedder=embedder)) as client:
            yield client
        embedder.close()
        return
    context = Context(
        model, n_ctx, n_seq_max=n_slots, kv_unified=kv_unified, adapters=adapters or (), n_threads=n_threads
    )
    batcher = Batcher(context, context.n_ubatch, shifts=shifts, idle=idle)
    for place in batcher.places:
        place.drafter = place_drafter(place.seq, context)
    with serving_at(Served(model, batcher, tokenizer, made, template, adapters, make_drafter)) as client:
        yield client
    context.close()


@contextlib.contextmanager
def serving_at(served: Service) -> Iterator[Client]:
    """A server of it, and a client."""
    listening = threading.Event()
    found: list[str] = []
    end: list[Callable[[], None]] = []

    def ready(address: str) -> None:
        found.append(address)
        listening.set()

    thread = threading.Thread(target=serve, args=(served, ready, end.append), daemon=True)
    thread.start()
    try:
        assert listening.wait(TIMEOUT)
        yield Client(found[0], served)
    finally:
        end[0]()
        thread.join(TIMEOUT)
    assert not thread.is_alive()
