"""The routes of a server of several models: those about the models, and all others, which go to the model that a request
names (tools/server/server-models.cpp: server_models_routes)."""

from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pyggml_server import FINGERPRINT
from pyggml_server.answers import unless_gone
from pyggml_server.app import application, model_routes
from pyggml_server.errors import RequestError
from pyggml_server.fields import Fields, as_fields
from pyggml_server.incoming import data_of, read
from pyggml_server.openai import described
from pyggml_server.streams import answer
from pyggml_server.zoo import Entry, Zoo

ABOUT_THE_SERVER = ("/health", "/v1/health", "/models", "/v1/models")


def make_zoo_app(zoo: Zoo) -> Starlette:
    """The ASGI application that serves it."""
    forward = Forward()
    routes = [
        Route("/health", health, methods=["GET"]),
        Route("/v1/health", health, methods=["GET"]),
        Route("/models", models, methods=["GET"]),
        Route("/v1/models", models, methods=["GET"]),
        Route("/models/load", load, methods=["POST"]),
        Route("/models/unload", unload, methods=["POST"]),
        Route("/props", _Props(forward), methods=["GET"]),
        *(
            Route(route.path, forward, methods=list(route.methods or ()))
            for route in model_routes()
            if route.path not in (*ABOUT_THE_SERVER, "/props")
        ),
    ]
    app = application(routes, zoo.settings)
    app.state.zoo = zoo
    return app


def _zoo_of(request: Request) -> Zoo:
    zoo: Zoo = request.app.state.zoo
    if zoo.ending:
        raise RequestError("the server is ending", status=503)
    return zoo


async def health(request: Request) -> Response:
    """GET /health: whether requests are answered."""
    _zoo_of(request)
    return answer({"status": "ok"})


async def models(request: Request) -> Response:
    """GET /v1/models: all that there are, each with its status; with ?reload=1 they are looked for anew."""
    zoo = _zoo_of(request)
    if request.query_params.get("reload"):
        await zoo.reload()
    zoo.look()
    return answer(
        {"object": "list", "data": [_described(zoo, entry) for entry in zoo.entries.values() if not entry.found.hidden]}
    )


def _described(zoo: Zoo, entry: Entry) -> dict[str, Any]:
    status: dict[str, Any] = {"value": entry.status}
    if entry.failed and not entry.running:
        status |= {"failed": True, "exit_code": 1}
    made = {
        "id": entry.name,
        "aliases": sorted(entry.found.aliases),
        "tags": sorted(entry.found.tags),
        "object": "model",
        "owned_by": "pyggml",
        "created": zoo.started,
        "status": status,
        "architecture": {"input_modalities": ["text"], "output_modalities": ["text"]},
        "source": entry.found.source,
        "can_remove": False,
    }
    return made if entry.served is None else {**made, "meta": described(entry.served)}


async def load(request: Request) -> Response:
    """POST /models/load: begin to load a model; /models says when it is there."""
    zoo = _zoo_of(request)
    zoo.load(_name(as_fields(await read(await data_of(request, zoo.settings)))))
    return answer({"success": True})


async def unload(request: Request) -> Response:
    """POST /models/unload: unload a model once its requests have ended."""
    zoo = _zoo_of(request)
    zoo.unload(_name(as_fields(await read(await data_of(request, zoo.settings)))))
    return answer({"success": True})


def _name(fields: Fields) -> str:
    name = fields.text("model", "")
    if not name:
        raise _no_name()
    return str(name)


def _no_name() -> RequestError:
    return RequestError("model name is missing from the request", param="model")


class Forward:
    """Hands a request to the model that it names: a body's `model`, otherwise ?model=."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        zoo = _zoo_of(request)
        name = request.query_params.get("model", "")
        data = await data_of(request, zoo.settings)
        if request.method == "POST" and not name:
            name = _name(as_fields(await read(data)))
        if not name:
            raise _no_name()
        asked = request.query_params.get("autoload")
        autoload = None if asked is None else asked in ("true", "1")
        entry = await unless_gone(request, zoo.acquire(name, autoload))
        receive = _again(data, receive)
        try:
            assert entry.app is not None
            inner = {key: value for key, value in scope.items() if key in _KEPT}
            await entry.app(inner, receive, send)
        finally:
            zoo.release(entry)


_KEPT = (
    *("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path", "headers"),
    *("client", "server", "extensions"),
)
"""A request's own; the rest is what the outer application has found out about it."""


def _again(data: bytes, receive: Receive) -> Receive:
    """The body that was read already, and then what comes."""
    left: list[Message] = [{"type": "http.request", "body": data, "more_body": False}]

    async def receiving() -> Message:
        return left.pop() if left else await receive()

    return receiving


class _Props:
    """GET /props: of a model, or of the server."""

    def __init__(self, forward: ASGIApp) -> None:
        self._forward = forward

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        if request.query_params.get("model"):
            await self._forward(scope, receive, send)
            return
        zoo = _zoo_of(request)
        told = {
            "role": "router",
            "max_instances": zoo.most,
            "models_autoload": zoo.autoload,
            "model_alias": "pyggml-server",
            "model_path": "none",
            "default_generation_settings": {"params": {}, "n_ctx": 0},
            "build_info": FINGERPRINT,
        }
        await answer(told)(scope, receive, send)
