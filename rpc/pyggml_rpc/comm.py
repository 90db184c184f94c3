"""Sums over two servers (`-sm tensor` of llama.cpp): which servers may take part, and what is asked of a connection.

A client makes a server listen, or call an address of the client's choice: so who may call or be called is the operator's
to say (`--comm`). It must not know a socket (`link.py`).
Facts: ggml-rpc.cpp, `comm_init` and `comm_allreduce`.
"""

import ipaddress
from collections.abc import Callable, Sequence
from typing import Protocol

from pyggml_rpc.errors import RefusedError

LOWEST_PORT = 1024


class CommError(RefusedError):
    """The other server cannot be had, or was lost."""


class Ends(Protocol):
    """What is asked of a connection to the other server."""

    rank: int

    def swap(self, mine: memoryview, theirs: memoryview) -> None:
        """Raises CommError."""

    def close(self) -> None: ...


Join = Callable[[int, str, int, Callable[[], bool]], Ends]
"""rank, host, port, whether the client is gone -> the connection. Raises CommError."""


class AllowList:
    """Who may call this server, or be called by it: addresses, networks (10.0.0.0/8), and names, which are looked up
    only if they stand here. Raises ValueError for what is none of them."""

    def __init__(self, words: Sequence[str] = ()) -> None:
        self._networks, self._names = [], set()
        for word in words:
            try:
                self._networks.append(ipaddress.ip_network(word))
            except ValueError:
                if "/" in word or not word.strip() or word.replace(".", "").isdigit():
                    raise ValueError(f"{word!r} is not an address, a network or a host name") from None
                self._names.add(word.lower())

    def admits(self, address: str) -> bool:
        try:
            ip = ipaddress.ip_address(address)
        except ValueError:
            return False
        ip = getattr(ip, "ipv4_mapped", None) or ip
        return any(ip in network for network in self._networks)

    def callable(self, host: str) -> str:
        """`host` if it may be called. Raises CommError; nothing is looked up before."""
        if self.admits(host) or host.lower() in self._names:
            return host
        raise CommError(f"{host!r} may not be called (flag --comm)")


LOOPBACK = AllowList(["127.0.0.0/8", "::1", "localhost"])
NOBODY = AllowList()


def allow_list(words: Sequence[str]) -> AllowList:
    """What --comm says. Raises ValueError."""
    return NOBODY if list(words) == ["none"] else AllowList(words)
