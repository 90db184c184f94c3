"""Whether the machine at the other end of a connection is still there, while it acknowledges nothing of what was sent.

Keepalive tells of connections on which all was acknowledged. What is not, Linux sends again for about 15 minutes (sysctl
tcp_retries2). TCP_USER_TIMEOUT would shorten that, and end connections to living machines: a program that does not read,
such as a server that computes, closes its window, and that option counts from then on. Here counts what the kernel says
of repetitions that nothing has answered (TCP_INFO): a living machine answers each, also those that only ask for its
window. Facts: struct tcp_info of linux/tcp.h; tcp_retransmit_timer and tcp_probe_timer of net/ipv4/tcp_timer.c.
"""

import errno
import socket
import struct
import sys
import time
from typing import NamedTuple

KEEPALIVE_IDLE = 60  # seconds until the kernel asks a silent machine whether it still exists
KEEPALIVE_AGAIN, KEEPALIVE_TIMES = 10, 6  # then it asks again and again
SILENT = float(KEEPALIVE_IDLE + KEEPALIVE_AGAIN * KEEPALIVE_TIMES)  # seconds, after which it gives such a machine up
UNHEARD = 30.0
"""Seconds after which a machine is asked whether it still exists, while what was sent is not acknowledged."""
LOOKS = 6  # in the time after which a machine is asked; it has until the next look to answer
_FIELDS = struct.Struct("=2xBB20xI24xII84xI80xI")  # to tcpi_snd_wnd, which Linux has since 5.4
_NO_ANSWER = (  # of connect
    errno.EINPROGRESS,
    errno.EALREADY,
    errno.ETIMEDOUT,
    errno.EHOSTUNREACH,
    errno.EHOSTDOWN,
    errno.ENETUNREACH,
    errno.ENETDOWN,
)


class UnheardError(OSError):
    """A machine answers nothing any more."""


class Info(NamedTuple):
    """What the kernel knows. Times in ms."""

    retransmits: int  # how often the first unacknowledged segment was sent again since anything was acknowledged
    probes: int  # of a closed window (or of keepalive), since any acknowledgement came
    unacknowledged: int  # segments
    last_data: int  # since any came
    last_acknowledgement: int  # since any came
    waiting: int  # bytes that were not sent yet
    window: int  # bytes that the other machine takes


def info(sock: socket.socket) -> Info | None:
    """None where the system does not tell: not Linux, older than 5.4, or a socket that is closed."""
    if sys.platform != "linux":
        return None
    try:
        data = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _FIELDS.size)
    except OSError:
        return None
    return Info(*_FIELDS.unpack(data)) if len(data) == _FIELDS.size else None


def unheard(sock: socket.socket, repetitions: int) -> float:
    """Seconds since anything came, where at least so many repetitions in a row have no answer; else 0.

    With a closed window the kernel asks for it at growing intervals, up to 120 s, so that a time alone proves nothing.
    Where a window was closed over segments that are under way, repetitions are not counted: the kernel itself gives up
    after 240 s without an answer then.
    """
    known = info(sock)
    if known is None:
        return 0.0
    if known.unacknowledged:
        without_answer = known.retransmits if known.window else 0
    else:
        without_answer = known.probes if known.waiting else 0
    return min(known.last_data, known.last_acknowledgement) / 1000 if without_answer >= repetitions else 0.0


def ask_when_silent(sock: socket.socket) -> None:
    """Keepalive, where the system lets its times be set: SILENT seconds in all."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        ("TCP_KEEPIDLE", KEEPALIVE_IDLE),
        ("TCP_KEEPINTVL", KEEPALIVE_AGAIN),
        ("TCP_KEEPCNT", KEEPALIVE_TIMES),
    ):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


class Watch:
    """Of a connection to a machine that answers new ones, or refuses them; for whoever waits for it.

    A machine that has answered nothing for `limit` seconds is asked for another connection. Only if that has no answer
    either is it lost: there are kernels that drop segments without a word where a program does not read (Linux before
    6.6, tcp_data_queue), and answer all else.
    """

    def __init__(self, sock: socket.socket, limit: float) -> None:
        self._sock = sock
        self._limit = limit
        self.pause = limit / LOOKS  # seconds between two looks
        self._asking: socket.socket | None = None
        self._asked = 0.0
        self._not_before = 0.0  # it is asked again

    def look(self) -> None:
        """Raises UnheardError when the machine is lost."""
        seconds, now = unheard(self._sock, 1), time.monotonic()
        if seconds < self._limit or now < self._not_before:
            self.close()
        elif self._answers(now):
            self.close()
            self._not_before = now + self._limit
        elif now - self._asked >= self.pause:
            self.close()
            raise UnheardError(f"its machine has answered nothing for {seconds:.0f} s (off, or without network)")

    def _answers(self, now: float) -> bool:
        """Ask it, and again what has come of that: whether it answers, or cannot be asked from here."""
        try:
            if self._asking is None:
                self._asking, self._asked = socket.socket(self._sock.family, socket.SOCK_STREAM), now
                self._asking.setblocking(False)
            return self._asking.connect_ex(self._sock.getpeername()) not in _NO_ANSWER
        except OSError:  # no descriptor is left; or the connection has just ended, which whoever waits for it sees
            return True

    def close(self) -> None:
        """Close the connection that was asked for, if there is one."""
        if self._asking is not None:
            self._asking.close()
            self._asking = None
