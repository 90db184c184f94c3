"""The browser page at /: a chat, made of the files of the folder `page`. Owns its routes and headers.

The files are in the package and read once. The page asks nobody but the server that it came from, which its
Content-Security-Policy has the browser enforce; text of models and users never becomes HTML (trusted types).
"""

import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

FOLDER = Path(__file__).parent / "page"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
HEADERS = {
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "object-src 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",
}


def _paths() -> dict[str, Path]:
    """Each path of the page, behind the prefix, and its file."""
    found = {f"/page/{file.name}": file for file in sorted(FOLDER.iterdir()) if file.suffix in TYPES}
    index = found.pop("/page/index.html")
    return {"/": index, "/index.html": index, **found}


PATHS = _paths()


def routes(prefix: str) -> list[Route]:
    """Those of the page, which begin with the prefix; without a slash behind it one is led to the page."""
    made = [Route(prefix + path, _sends(file), methods=["GET"]) for path, file in PATHS.items()]
    if prefix:
        made.append(Route(prefix, _to_page, methods=["GET"]))
    return made


async def _to_page(request: Request) -> Response:
    return RedirectResponse(f"{request.url.path}/")


def _sends(file: Path) -> Callable[[Request], Awaitable[Response]]:
    """What sends a file, unless the browser has it."""
    data, kind = file.read_bytes(), TYPES[file.suffix]
    headers = {**HEADERS, "etag": f'"{hashlib.sha256(data).hexdigest()[:32]}"'}

    async def send(request: Request) -> Response:
        if request.headers.get("if-none-match") == headers["etag"]:
            return Response(status_code=304, headers=headers)
        return Response(data, headers=headers, media_type=kind)

    return send
