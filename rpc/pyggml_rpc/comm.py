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


LookUp = Callable[[str], Sequence[str]]
"""A host's name -> its addresses. Raises OSError."""
KNOWN = "an address, a network such as 10.0.0.0/8, a host name, or none alone"


class AllowList:
    """Who may call this server, or be called by it: addresses, networks (10.0.0.0/8), and names.

    A name is looked up here, so that one that means nobody is found at once, and who has its addresses may call; and
    again when it is called itself. No name that does not stand here is ever looked up. Raises ValueError for what is
    none of these.
    """

    def __init__(self, words: Sequence[str] = (), look_up: LookUp = lambda name: ()) -> None:
        self._networks, self._names = [], set()
        for word in words:
            try:
                self._networks.append(ipaddress.ip_network(word))
                continue
            except ValueError:
                if "/" in word or not word.strip() or word.lower() == "none" or word.replace(".", "").isdigit():
                    raise ValueError(f"{word!r} is not {KNOWN}") from None
            try:
                found = look_up(word)
            except (OSError, UnicodeError) as error:  # a label that is empty or too long is no IDNA
                why = getattr(error, "strerror", None) or error
                raise ValueError(f"{word!r} is not {KNOWN}: looked up as a name: {why}") from None
            self._names.add(word.lower())
            self._networks += [ipaddress.ip_network(address.partition("%")[0]) for address in found]

    def admits(self, address: str) -> bool:
        """Whether an address in digits, IPv4 or IPv6, is one of these."""
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


def allow_list(words: Sequence[str], look_up: LookUp) -> AllowList:
    """What --comm says. Raises ValueError."""
    return NOBODY if list(words) == ["none"] else AllowList(words, look_up)
