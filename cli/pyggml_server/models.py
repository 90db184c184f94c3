"""Which models a server of several has to offer, and what is special about each. Owns how the models of a folder are found; must not
know flags: what a model's own are is a list of words to whoever made it."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger("pyggml.server")


@dataclass(frozen=True)
class Found:
    """A model that can be loaded.

    path      its first file; None: its own flags say where it comes from
    source    of what it is: "models_dir", "cache" or "preset", as llama-server has them
    flags     what it is loaded with, before the flags of all
    aliases   other names of it; tags: what /v1/models tells of it
    at_start  it is loaded when the server starts
    patience  seconds that requests under way get when it is unloaded; None: as many as they take
    hidden    it is not listed, but answers to its name
    """

    path: Path | None
    source: str = "models_dir"
    flags: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    at_start: bool = False
    patience: float | None = None
    hidden: bool = False


def listed_in(folder: Path) -> dict[str, Found]:
    """The models of a folder as llama-server names them (common/preset.cpp: load_from_models_dir): files by their names without
    .gguf, folders in it by theirs; of a split model the first part. Bytes of a name that are no UTF-8 are U+FFFD. Raises OSError."""
    found: dict[str, Found] = {}
    for path in sorted(folder.iterdir()):
        name = os.fsencode(path.name).decode("utf-8", "replace")
        if path.is_dir():
            models = _models_in(path)
            first = [file for file in models if "-00001-of-" in file.name]
            if models:
                found[name] = Found((first or models)[0])
        elif is_model(path) and (plain := name.replace(".gguf", "")):
            found[plain] = Found(path)
    return found


def _models_in(folder: Path) -> list[Path]:
    """Of one that is not to be read, or gone meanwhile, none: others are served all the same."""
    try:
        return [file for file in sorted(folder.iterdir()) if is_model(file)]
    except OSError as reason:
        log.warning("%s: its models are left out: %s", os.fsencode(folder).decode("utf-8", "replace"), reason.strerror)
        return []


def is_model(path: Path) -> bool:
    """Whether a file is a model of its own, and not a part of another."""
    if not path.name.endswith(".gguf") or not path.is_file():
        return False
    return "mmproj" not in path.name and not path.name.startswith(("mtp-", "dspark-", "dflash-"))
