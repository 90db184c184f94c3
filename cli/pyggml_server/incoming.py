"""What every route asks of a request: its body, who sent it, and what serves it. Owns the body's limits."""

import asyncio
from typing import Any

from starlette.requests import ClientDisconnect, Request

from pyggml_server.answers import ClientGone, in_thread
from pyggml_server.errors import RequestError
from pyggml_server.fields import Fields, as_fields, read_json
from pyggml_server.served import Served
from pyggml_server.settings import Settings

SMALL = 1 << 16  # bytes of a body that are read without a thread


def served_by(request: Request) -> Served:
    """Raises RequestError when the server is ending."""
    served: Served = request.app.state.served
    if served.ending:
        raise RequestError("the server is ending", status=503)
    return served


def client_of(request: Request) -> str:
    """Whose turn it is among those that wait: the address, or the key where one is asked for."""
    key = request.headers.get("authorization") or request.headers.get("x-api-key") or ""
    host = request.client.host if request.client else ""
    return f"{host} {key}"


async def body_of(request: Request) -> Fields:
    """The request's JSON, which has to be an object. Raises RequestError, ClientGone."""
    return as_fields(await json_of(request))


async def json_of(request: Request) -> Any:
    """The request's JSON. Raises RequestError, ClientGone."""
    return await read(await data_of(request, served_by(request).settings))


async def read(data: bytes) -> Any:
    """A body's JSON; a long one is read on a thread, so that answers go on. Raises RequestError."""
    return read_json(data) if len(data) <= SMALL else await in_thread(lambda: read_json(data))


async def data_of(request: Request, settings: Settings) -> bytes:
    """The request's body. Raises RequestError, ClientGone."""
    form = request.headers.get("content-encoding", "identity")
    if form.lower() != "identity":
        raise RequestError(f"a body in content-encoding {form[:60]}: bodies are taken as they are", status=415)
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > settings.largest_body:
        raise _too_large(length, settings.largest_body)
    data = bytearray()
    try:
        async with asyncio.timeout(settings.body_timeout):
            async for part in request.stream():
                data += part
                if len(data) > settings.largest_body:
                    raise _too_large(f"more than {settings.largest_body}", settings.largest_body)
    except TimeoutError:
        raise RequestError(f"the body did not come within {settings.body_timeout:g} seconds", status=408) from None
    except ClientDisconnect:
        raise ClientGone from None
    return bytes(data)


def _too_large(size: str, largest: int) -> RequestError:
    return RequestError(f"a body of {size} bytes, at most {largest} are taken", status=413)
