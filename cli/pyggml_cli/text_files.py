"""Texts that flags name files of: prompts, grammars, schemas, templates.

Owns reading them whole, but never without an end (/dev/zero has none).
"""

import sys
from typing import BinaryIO

from pyggml_cli.flags import UsageError

LARGEST = 256 << 20  # bytes
STDIN = "-"


def read_bytes(name: str, stdin: bool = False) -> bytes:
    """All that is in a file; with `stdin`, of `-` what standard input brings. Raises UsageError, OSError."""
    if stdin and name == STDIN:
        return _all(sys.stdin.buffer, "standard input")
    with open(name, "rb") as file:
        return _all(file, name)


def read_text(name: str, stdin: bool = False, encoding: str = "utf-8") -> str:
    """The same as text. Raises UsageError where it is none, OSError."""
    data = read_bytes(name, stdin)
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as reason:
        name = "standard input" if stdin and name == STDIN else name
        raise UsageError(f"{name}: not UTF-8 text: byte {data[reason.start]:#04x} at {reason.start}") from None


def _all(file: BinaryIO, name: str) -> bytes:
    data = bytearray()
    while piece := file.read(1 << 20):
        data += piece
        if len(data) > LARGEST:
            raise UsageError(f"{name}: more than {LARGEST} bytes, too large for a text")
    return bytes(data)
