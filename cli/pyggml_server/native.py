"""llama-server's own routes. Owns their dicts."""

from starlette.requests import Request
from starlette.responses import Response

from pyggml_server.incoming import served_by
from pyggml_server.streams import answer


async def health(request: Request) -> Response:
    """GET /health: whether requests are answered."""
    served_by(request)
    return answer({"status": "ok"})
