"""A plugin for pytest: this machine as one that has a driver's packages and what kernels are compiled with, and neither what
tests alone ask for, nor internet."""

import os
import socket
import subprocess
import sys
from typing import Any

LACKING = (
    "openai", "anthropic", "starlette", "uvicorn", "httptools", "diskcache", "huggingface_hub", "matplotlib", "xdist", "anyio",
)  # fmt: skip


class Without:
    """A finder of modules that does not find those."""

    def __init__(self, finder: Any) -> None:
        self.finder = finder

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        return None if name.partition(".")[0] in LACKING else self.finder.find_spec(name, path, target)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.finder, name)


SEARCHES = ("ldconfig", "gcc", "ld", "objdump")  # what ctypes looks for libraries with
_begin = subprocess.Popen.__init__


def begin(self: Any, args: Any, *others: Any, **options: Any) -> None:
    first = args if isinstance(args, str) else args[0]
    if os.path.basename(str(first)) not in SEARCHES:
        self.returncode, self.args = None, args  # for its repr
        refuse(args)
    _begin(self, args, *others, **options)


def refuse(*args: Any, **_: Any) -> Any:
    raise AssertionError(f"asked for before a GPU was looked for: {args}")


sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]  # type: ignore[misc]
socket.create_connection = refuse
subprocess.Popen.__init__ = begin  # type: ignore[assignment, method-assign]
