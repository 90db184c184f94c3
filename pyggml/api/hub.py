"""`Llama.from_pretrained`: a model file by the name of its repository.

Owns the choice of files by their patterns; fetching is the package huggingface-hub's, imported when it is asked for.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from pyggml.api.arguments import ParameterError
from pyggml.api.tokenizers import MissingPackageError


def download(
    repo_id: str,
    filename: str | None,
    additional_files: Sequence[str] | None = None,
    local_dir: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> str:
    """Fetch the one file that the pattern fits, and one for each of `additional_files`; the path of the first.

    Raises MissingPackageError, ParameterError; of the network what huggingface-hub raises."""
    try:
        import huggingface_hub as hub
    except ImportError:
        raise MissingPackageError(
            "from_pretrained needs the package huggingface-hub: pip install 'pyggml[hf]'"
        ) from None
    there: list[str] = hub.HfApi().list_repo_files(repo_id)
    chosen = [_only(repo_id, there, pattern) for pattern in (filename or "*.gguf", *(additional_files or ()))]
    paths = [_fetch(hub, repo_id, name, local_dir, cache_dir) for name in chosen]
    return paths[0]


def _only(repo_id: str, there: Sequence[str], pattern: str) -> str:
    """The name of the one file that the pattern fits; it may name a file in a folder, or the file alone."""
    fitting = [name for name in there if fnmatch.fnmatch(name, pattern)]
    fitting = fitting or [name for name in there if PurePosixPath(name).name == pattern]
    if len(fitting) != 1:
        some = ", ".join(fitting or there)
        raise ParameterError(f"{repo_id}: {len(fitting)} files fit {pattern!r}, not one; there are {some:.500}")
    return fitting[0]


def _fetch(hub: Any, repo_id: str, name: str, local_dir: Any, cache_dir: Any) -> str:
    path: str = hub.hf_hub_download(repo_id=repo_id, filename=name, local_dir=local_dir, cache_dir=cache_dir)
    return path
