"""A socket that loses what arrives: a packet filter (socket(7): SO_ATTACH_FILTER) drops each segment before TCP sees it, so that
nothing is acknowledged. Linux alone; anybody may do it."""

import ctypes
import socket
import struct
import sys

import pytest

linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="TCP_INFO and socket filters are Linux's")
ATTACH, DETACH = 26, 27
NOTHING = struct.pack("=HBBI", 6, 0, 0, 0)  # BPF_RET: 0 bytes of each packet


def deafen(sock: socket.socket) -> None:
    program = ctypes.create_string_buffer(NOTHING)
    sock.setsockopt(socket.SOL_SOCKET, ATTACH, struct.pack("@HP", 1, ctypes.addressof(program)))


def hear_again(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, DETACH, 0)
