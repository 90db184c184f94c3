"""Google's Vertex AI: many requests in one, each to a route that it names (tools/server/server-http.cpp: register_gcp_compat).

Owns that route, which is there where AIP_MODE is PREDICTION: https://cloud.google.com/vertex-ai/docs/predictions/custom-container-requirements
"""

import asyncio
import json
import os
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message

from pyggml_server.errors import RequestError
from pyggml_server.fields import Fields
from pyggml_server.incoming import body_of, served_by
from pyggml_server.streams import answer

MOST = 128  # requests in one
Endpoint = Callable[[Request], Awaitable[Response]]


def format_name(path: str) -> str:
    """What a route is called there: /v1/chat/completions is chatCompletions."""
    words = re.split(r"[/_-]", re.sub("^/(v1/)?", "", path))
    return words[0] + "".join(word[:1].upper() + word[1:] for word in words[1:])


def extra_routes(routes: Sequence[Route], environment: Mapping[str, str] = os.environ) -> list[Route]:
    """The routes that the variables of a deployment ask for, over those that there are."""
    if environment.get("AIP_MODE") != "PREDICTION":
        return []
    known: dict[str, Endpoint] = {}
    for route in routes:
        if "POST" in (route.methods or ()) and "{" not in route.path:
            known.setdefault(format_name(route.path), route.endpoint)
            known.setdefault(route.path, route.endpoint)

    async def predict(request: Request) -> Response:
        """POST: the answers to all instances, in their order; what is wrong with one is its own answer."""
        served_by(request)
        instances = list((await body_of(request)).objects("instances"))
        if not 1 <= len(instances) <= MOST:
            raise RequestError(f"instances has {len(instances)} items, must have 1 to {MOST}", param="instances")
        return answer({"predictions": await asyncio.gather(*(_one(request, known, one) for one in instances))})

    wanted = "/" + environment.get("AIP_PREDICT_ROUTE", "predict").lstrip("/")
    found = [Route(wanted, predict, methods=["POST"])]
    if health := environment.get("AIP_HEALTH_ROUTE"):
        (own,) = [route for route in routes if route.path == "/health"]
        found.append(Route("/" + health.lstrip("/"), own.endpoint, methods=["GET"]))
    return found


async def _one(request: Request, known: Mapping[str, Endpoint], instance: Fields) -> Any:
    try:
        name = instance.text("@requestFormat")
        if name not in known:
            raise instance.wrong("@requestFormat", f"must be one of {', '.join(k for k in known if k[0] != '/')}")
        data = {**instance.data, "stream": False}
        del data["@requestFormat"]
        response = await known[name](_request(request, json.dumps(data).encode()))
    except RequestError as reason:
        return reason.body()
    return json.loads(bytes(response.body))


def _request(request: Request, body: bytes) -> Request:
    """As it came, with another body; it ends as that one does."""
    given = False

    async def receive() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await request.receive()

    kept = [(name, value) for name, value in request.scope["headers"] if name != b"content-length"]
    return Request({**request.scope, "headers": kept}, receive)
