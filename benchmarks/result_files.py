"""Files that benchmarks write and read, as types of argparse: a name that belongs to another kind of file is refused at
once.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from pyggml.atomic_file import refuse_another
from pyggml.errors import PyggmlError


def json_file(text: str) -> Path:
    """Where figures go."""
    return _free(text, "file of figures", (b"{", b"["))


def png_file(text: str) -> Path:
    """Where a picture goes."""
    return _free(text, "picture", (b"\x89PNG",))


def figures(text: str) -> Any:
    """What such a file holds."""
    try:
        found = json.loads(Path(text).read_bytes())
        if "results" in found and "machine" in found:
            return found
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error.strerror}") from None
    except (ValueError, TypeError):
        pass
    raise argparse.ArgumentTypeError(f"{text}: no figures that vs_llamacpp.py --json wrote")


def _free(text: str, kind: str, beginnings: tuple[bytes, ...]) -> Path:
    try:
        refuse_another(text, kind, lambda head: head.lstrip().startswith(beginnings))
    except (PyggmlError, OSError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return Path(text)
