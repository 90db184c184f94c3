"""Models: what general.architecture says, weights on their devices, the graph of a micro-batch.

Owns the choice of a file in `arch/`; knows no tokenizer, and no sequence of tokens.
"""

from __future__ import annotations

import functools
import pkgutil
from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pyggml.errors import ModelError
from pyggml.model import arch
from pyggml.model.hparams import Hparams
from pyggml.model.module import bind

if TYPE_CHECKING:
    from pyggml.model.layers import CausalLM


def architectures() -> list[str]:
    """Values of general.architecture that are known: the files of arch/."""
    return list(_names(tuple(arch.__path__)))


@functools.cache
def _names(folders: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(folders)))


def architecture_of(metadata: Mapping[str, Any]) -> str:
    """What general.architecture says. Raises ModelError, with the nearest of those supported, and all of them."""
    name = metadata.get("general.architecture")
    if not isinstance(name, str):
        raise ModelError("key general.architecture is missing")
    if (plain := name.replace("_", "-")) not in (known := architectures()):
        near = get_close_matches(plain, known, 1)
        nearest = f" (nearest: {near[0]})" if near else ""
        raise ModelError(f"architecture {name!r:.40} is unknown here{nearest}; supported: {', '.join(known)}")
    return name


def make_modules(hp: Hparams, tensors: Mapping[str, Any]) -> CausalLM:
    """The modules of hp.architecture, their weights named and without tensors; `tensors` are the file's, by name, with `ne`
    and `type`. Raises ModelError."""
    made: CausalLM = import_module(f"{arch.__name__}.{hp.architecture.replace('-', '_')}").Model(hp, tensors)
    bind(made, hp.n_layer)
    return made
