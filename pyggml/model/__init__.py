"""Models: what general.architecture says, weights on their devices, a context that decodes tokens.

Owns the list of architectures, one file each, named as the file's general.architecture; knows no tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from pyggml.errors import ModelError
from pyggml.model.architecture import Architecture

ARCHITECTURES: dict[str, str] = {"llama": "Llama"}
"""general.architecture -> the class in the file of that name."""


def architecture_of(metadata: Mapping[str, Any]) -> Architecture:
    """Raises ModelError, listing those supported."""
    name = metadata.get("general.architecture")
    if not isinstance(name, str):
        raise ModelError("key general.architecture is missing")
    if name not in ARCHITECTURES:
        raise ModelError(f"architecture {name!r} is unknown here; supported: {', '.join(sorted(ARCHITECTURES))}")
    make: Callable[[], Architecture] = getattr(import_module(f"pyggml.model.{name}"), ARCHITECTURES[name])
    return make()
