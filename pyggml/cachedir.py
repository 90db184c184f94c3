"""Where files that can be made again are kept. Owns the place; knows nothing of what is kept there."""

import os
from pathlib import Path


def cache_dir(name: str) -> Path:
    """The folder `name` ("kernels", "models", "rpc", "peer") under the one cache root, made if it is missing.

    The root is $PYGGML_CACHE, else $XDG_CACHE_HOME/pyggml, else ~/.cache/pyggml.
    """
    root = os.environ.get("PYGGML_CACHE")
    if root:
        base = Path(root)
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyggml"
    path = base / name
    path.mkdir(parents=True, exist_ok=True)
    return path
