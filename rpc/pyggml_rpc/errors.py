"""What goes wrong between two machines, by name. Owns these errors; knows no socket and no device."""

from pyggml.errors import PyggmlError


class RemoteProtocolError(PyggmlError):
    """The other side broke the protocol: the connection ends, whoever owns it says so in one line."""


class RefusedError(PyggmlError):
    """A well-framed request that the server will not execute. There is no error frame: it closes the connection."""


class RpcError(PyggmlError):
    """A server that cannot be reached, that broke off, or that speaks another protocol.

    `endpoint` is "host:port" as the user wrote it, `command` the wire's word for what was asked (or "connect"),
    `reason` the rest of the line.
    """

    def __init__(self, endpoint: str, command: str, reason: str) -> None:
        super().__init__(f"RPC server {endpoint}: {command}: {reason}")
        self.endpoint = endpoint
        self.command = command
        self.reason = reason
