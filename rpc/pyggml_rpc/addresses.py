"""Endpoints as text, and which addresses count as one client. Owns their grammar; opens nothing."""

import ipaddress
from collections.abc import Hashable


def split_endpoint(endpoint: str) -> tuple[str, int]:
    """ "host:port", or "[host]:port" for an IPv6 address. Raises ValueError saying what is wrong."""
    if endpoint.startswith("["):
        host, bracket, rest = endpoint[1:].partition("]")
        colon, port = rest[:1], rest[1:]
        if not bracket:
            raise ValueError(f"{endpoint!r} has a '[' and no ']'")
    else:
        host, colon, port = endpoint.partition(":")
        if port.count(":") and _is_ipv6(endpoint.rpartition(":")[0]):
            raise ValueError(f"{endpoint!r}: write an IPv6 address in brackets: [{endpoint.rpartition(':')[0]}]:PORT")
    if not host or colon != ":":
        raise ValueError(f"{endpoint!r} is not host:port")
    if not (port.isascii() and port.isdecimal()) or not 0 < int(port) < 65536:
        raise ValueError(f"{port!r} is not a port number")
    return host, int(port)


def join_endpoint(host: str, port: int) -> str:
    """What `split_endpoint` takes apart."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def bare_host(host: str) -> str:
    """A host to listen on, without the brackets of an IPv6 address."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def owner_of(address: str) -> Hashable:
    """Who a client's address stands for where places, memory and time are shared; None: each connection for itself.

    This machine's own users cannot be told apart by address. Whoever has one IPv6 address has the 2^64 beside it.
    """
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    mapped = getattr(ip, "ipv4_mapped", None)
    ip = mapped or ip
    if ip.is_loopback:
        return None
    return str(ip) if ip.version == 4 else str(ipaddress.ip_network((ip, 64), strict=False))


def is_local(host: str) -> bool:
    """Whether only this machine's own programs reach a server that listens on this address."""
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _is_ipv6(text: str) -> bool:
    try:
        return ipaddress.ip_address(text.partition("%")[0]).version == 6
    except ValueError:
        return False
