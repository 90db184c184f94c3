"""What tests of whole models over the wire read of our server."""

from pyggml_rpc.transport import Listener
from pyggml_rpc.wire import Command


def graphs(listener: Listener) -> int:
    """How often it has computed one."""
    counters = listener.server.counters
    return counters.requests[Command.GRAPH_COMPUTE] + counters.requests[Command.GRAPH_RECOMPUTE]
