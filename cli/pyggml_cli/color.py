"""Colors for the prompt and for what the user types (`--color`), as llama.cpp's common/console.cpp has them.

Owns the escape codes and when they are used.
"""

import os
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Colors:
    """Codes to write before a prompt, before the user's input, before what is thought, and after each; all empty without colors."""

    prompt: str = ""
    typed: str = ""
    reset: str = ""
    thought: str = ""


def colors(wanted: str) -> Colors:
    """`wanted` is on, off or auto: where stdout is a terminal that has colors, and NO_COLOR is not set."""
    able = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"
    if wanted == "on" or (wanted == "auto" and able):
        return Colors("\x1b[33m", "\x1b[1m\x1b[32m", "\x1b[0m", "\x1b[90m")
    return Colors()
