"""The routes, and what becomes of errors. Owns which path is whose."""

import logging
from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pyggml_server import (
    anthropic,
    budget,
    embeddings,
    native,
    native_completion,
    openai,
    openapi,
    page,
    predict,
    responses,
    slots,
)
from pyggml_server.answers import ClientGone
from pyggml_server.errors import RequestError
from pyggml_server.guard import Guard
from pyggml_server.served import Served
from pyggml_server.settings import Settings
from pyggml_server.streams import error_answer

log = logging.getLogger("pyggml.server")

GET, POST = ["GET"], ["POST"]
ROUTES = [
    Route("/health", native.health, methods=GET),
    Route("/v1/health", native.health, methods=GET),
    Route("/models", openai.models, methods=GET),
    Route("/v1/models", openai.models, methods=GET),
    Route("/completion", native_completion.completion, methods=POST),
    Route("/completions", native_completion.completion, methods=POST),
    Route("/infill", native_completion.infill, methods=POST),
    Route("/tokenize", native.tokenize, methods=POST),
    Route("/detokenize", native.detokenize, methods=POST),
    Route("/apply-template", native.apply_template, methods=POST),
    Route("/props", native.props, methods=GET),
    Route("/openapi.json", openapi.page_of, methods=GET),
    Route("/slots", slots.slots, methods=GET),
    Route("/slots/{slot}", slots.slot_action, methods=POST),
    Route("/metrics", native.metrics, methods=GET),
    Route("/lora-adapters", native.lora_adapters, methods=["GET", "POST"]),
    Route("/chat/completions/input_tokens", native.count_chat, methods=POST),
    Route("/v1/chat/completions/input_tokens", native.count_chat, methods=POST),
    Route("/v1/chat/completions/control", budget.control, methods=POST),
    Route("/v1/completions", openai.completions, methods=POST),
    Route("/chat/completions", openai.chat_completions, methods=POST),
    Route("/v1/embeddings", embeddings.openai, methods=POST),
    Route("/embedding", embeddings.native, methods=POST),
    Route("/embeddings", embeddings.native, methods=POST),
    *(
        Route(path, embeddings.rerank, methods=POST)
        for path in ("/rerank", "/reranking", "/v1/rerank", "/v1/reranking")
    ),
    Route("/responses", responses.responses, methods=POST),
    Route("/v1/responses", responses.responses, methods=POST),
    Route("/responses/input_tokens", responses.count, methods=POST),
    Route("/v1/responses/input_tokens", responses.count, methods=POST),
    Route("/v1/messages", anthropic.messages, methods=POST),
    Route("/v1/messages/count_tokens", anthropic.count_tokens, methods=POST),
    Route("/v1/chat/completions", openai.chat_completions, methods=POST),
]


def model_routes() -> list[Route]:
    """All that a model answers."""
    return [*ROUTES, *predict.extra_routes(ROUTES)]


def make_app(served: Served) -> Starlette:
    """The ASGI application that serves it."""
    routes = model_routes()
    app = application(routes, served.settings)
    app.state.served, app.state.offered = served, routes
    return app


def application(routes: Sequence[Route], settings: Settings) -> Starlette:
    """One of these routes, behind the prefix, and of the page."""
    made = [
        Route(settings.api_prefix + route.path, route.endpoint, methods=list(route.methods or ())) for route in routes
    ]
    if settings.ui:
        made += page.routes(settings.api_prefix)
    app = Starlette(
        routes=made,
        middleware=[Middleware(Guard, settings=settings)],
        exception_handlers={
            RequestError: _refused,
            HTTPException: _no_route,
            ClientGone: _gone,
            Exception: _own_fault,
        },
    )
    # a redirection would lead to where the request's Host says, by the scheme that a proxy in between speaks
    app.router.redirect_slashes = False
    return app


async def _refused(request: Request, reason: Exception) -> Response:
    assert isinstance(reason, RequestError)
    return error_answer(reason)


async def _no_route(request: Request, reason: Exception) -> Response:
    assert isinstance(reason, HTTPException)
    path, method = request.url.path[:200], request.method
    if reason.status_code == 405 and method == "OPTIONS":
        return Response(headers=reason.headers)
    what = f"{path} does not take {method}" if reason.status_code == 405 else f"there is no {path}"
    made = error_answer(
        RequestError(what if reason.status_code in (404, 405) else reason.detail, status=reason.status_code)
    )
    made.headers.update(reason.headers or {})
    return made


async def _gone(request: Request, reason: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it


async def _own_fault(request: Request, reason: Exception) -> Response:
    return error_answer(RequestError("the server failed; its log says more", status=500))
