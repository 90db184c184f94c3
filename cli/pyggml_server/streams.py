"""Server-sent events and JSON answers. Owns their form on the wire."""

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.responses import Response, StreamingResponse

from pyggml_server.errors import RequestError

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


def dump(value: Any) -> bytes:
    """As JSON in UTF-8."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A whole answer."""
    return Response(dump(value), status, headers, media_type="application/json")


def error_answer(reason: RequestError) -> Response:
    """An error as a whole answer."""
    headers = {"retry-after": "1"} if reason.status == 503 else {}
    if reason.status == 401:
        headers["www-authenticate"] = "Bearer"
    return answer(reason.body(), reason.status, headers)


def event(value: Any, name: str | None = None) -> bytes:
    """One event of a stream."""
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + dump(value) + b"\n\n"


def stream(
    events: AsyncIterator[bytes], failed: Callable[[RequestError], bytes] = lambda reason: event(reason.body())
) -> Response:
    """An answer that comes piece by piece; an error on the way is its last event, which `failed` makes."""

    async def guarded() -> AsyncIterator[bytes]:
        try:
            async for part in events:
                yield part
        except RequestError as reason:
            yield failed(reason)

    return StreamingResponse(guarded(), headers=HEADERS, media_type="text/event-stream; charset=utf-8")


async def begun(events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same events, once the first of them is there: what is refused before it is an answer of its own, with its status."""
    first = await anext(events)

    async def whole() -> AsyncIterator[bytes]:
        yield first
        async for part in events:
            yield part

    return whole()
