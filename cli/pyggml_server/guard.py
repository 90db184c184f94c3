"""Who is let in: API keys, and pages of other origins.

Owns the check that comes before every route, and the headers of CORS.
"""

import hmac
import platform
import re
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pyggml_server import page
from pyggml_server.errors import RequestError
from pyggml_server.settings import Settings
from pyggml_server.streams import error_answer

PUBLIC = ("/health", "/v1/health")
LOCAL = ("localhost", "127.0.0.1", "::1")


class Guard:
    """Before `app`: a request without a key that is right gets 401, one of a page that is not allowed 403."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._settings = app, settings
        self._keys = [key.encode() for key in settings.api_keys]
        public = (*PUBLIC, "", *page.PATHS) if settings.ui else PUBLIC
        self._public = {settings.api_prefix + path for path in public}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if scope["method"] == "OPTIONS" and origin is not None:  # a browser asks: without headers the answer is no
            shared = self._shared(origin)
            await _empty(_with(send, shared) if shared else send)
            return
        if self._misled(headers.get("host", "")):
            named = f"the server was called {headers['host'][:100]}, and is for this machine alone"
            refused = RequestError(f"{named}: --cors-origins, --host or an API key let others use it", status=403)
            await error_answer(refused)(scope, receive, send)
            return
        if origin is not None and not self._allowed(origin) and not _own(origin, headers.get("host", "")):
            refused = RequestError(
                f"pages of {origin[:100]} may not use this server; --cors-origins says which may", status=403
            )
            await error_answer(refused)(scope, receive, send)
            return
        shared = self._shared(origin) if origin is not None else {}
        if shared:
            send = _with(send, shared)
        if self._keys and scope["path"] not in self._public and not self._knows(headers):
            await error_answer(RequestError("the API key is missing or wrong", status=401))(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _knows(self, headers: Headers) -> bool:
        """All keys are compared, each in constant time."""
        given = headers.get("authorization") or headers.get("x-api-key") or ""
        given = re.sub("^Bearer +", "", given, flags=re.IGNORECASE)
        data = given.encode("utf-8", "surrogateescape")
        return any([hmac.compare_digest(data, key) for key in self._keys])  # noqa: C419, all are looked at

    def _misled(self, host: str) -> bool:
        """Whether a server of this machine was called by a name that is not this machine's. Whoever owns a name can have it lead
        here ("DNS rebinding"): then pages under that name are of the server's own origin, and send no Origin where they read."""
        name = _host(f"http://{host}")
        if self._keys or name is None or _is_address(name) or not all(map(_is_loopback, self._settings.hosts)):
            return False
        own = (*LOCAL, platform.node().lower(), *self._settings.hosts)
        return name not in own and not name.endswith(".localhost") and not self._named(name)

    def _named(self, name: str) -> bool:
        """Whether --cors-origins lets pages of this host in."""
        listed = self._settings.cors_origins
        return "*" in listed or any(_host(origin) == name for origin in listed)

    def _allowed(self, origin: str) -> bool:
        host = _host(origin)
        return self._listed(origin) or host in LOCAL or (host is not None and host in self._settings.hosts)

    def _listed(self, origin: str) -> bool:
        """`localhost` stands for pages of this machine, whatever their port."""
        listed = self._settings.cors_origins
        return "*" in listed or origin in listed or ("localhost" in listed and _host(origin) in LOCAL)

    def _shared(self, origin: str) -> dict[str, str]:
        """Headers that let a page of another origin read the answer."""
        if not self._listed(origin):
            return {}
        settings = self._settings
        shared = {
            "access-control-allow-origin": origin,
            "access-control-allow-methods": settings.cors_methods,
            "access-control-allow-headers": settings.cors_headers,
            "vary": "origin",
        }
        return {**shared, "access-control-allow-credentials": "true"} if settings.cors_credentials else shared


def _own(origin: str, host: str) -> bool:
    """Whether it is our own page, called by the server's address. A name proves nothing (see _misled)."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return _is_address(parts.hostname or "") and parts.netloc == host


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback(name: str) -> bool:
    return name == "localhost" or (_is_address(name) and ip_address(name).is_loopback)


def _host(origin: str) -> str | None:
    try:
        return urlsplit(origin).hostname
    except ValueError:
        return None


def _with(send: Send, shared: dict[str, str]) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in shared.items():
                headers[name] = value
        await send(message)

    return sending


async def _empty(send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})
