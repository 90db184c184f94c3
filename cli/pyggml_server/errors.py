"""What a client is told when its request cannot be answered: a status and one line, in OpenAI's shape.

Owns the shape and its names of errors (tools/server/server-common.cpp: format_error_response).
"""

import re
from pathlib import Path
from typing import Any

from pyggml.errors import PyggmlError

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "not_found_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    431: "invalid_request_error",
    500: "server_error",
    501: "not_supported_error",
    503: "unavailable_error",
}


class RequestError(PyggmlError):
    """A request that is refused.

    status  of HTTP
    param   the field of the request that is wrong, as in `messages[0].content`
    kind    OpenAI's type of error; None: the usual one of the status
    extra   further fields of the error
    """

    def __init__(
        self, message: str, *, status: int = 400, param: str | None = None, kind: str | None = None, **extra: Any
    ) -> None:
        super().__init__(message)
        self.status, self.param = status, param
        self.kind = kind or KINDS.get(status, "server_error")
        self.extra = extra

    def body(self) -> dict[str, Any]:
        """The answer's JSON."""
        error = {"code": self.status, "message": str(self), "type": self.kind, "param": self.param}
        return {"error": {**error, **self.extra}}


def unsupported(what: str, param: str | None = None) -> RequestError:
    """Something that the protocol has and this server has not."""
    return RequestError(what, status=501, param=param)


def without_places(told: str) -> str:
    """What is told of a file or an RPC server, without the folder or the address, which the log has: they are nobody's business."""
    return re.sub(r"^RPC server \S+: ", "RPC server: ", re.sub(r"^/[^:]*/(?=[^/:]+:)", "", told))


def told_of(reason: BaseException, *paths: Path | str | None) -> str:
    """One line about an error, without the folders of these files and of the one that it names, and without addresses."""
    told = " ".join(str(reason).split()) or type(reason).__name__
    for path in (*paths, getattr(reason, "filename", None)):
        if path is not None:
            told = told.replace(str(path), Path(path).name)
    return without_places(told)
