"""Models that were fetched before: those of the hub's cache, in llama.cpp's or huggingface-hub's folder, and of the flat folder that older
versions of llama.cpp have filled.

Owns where these folders are and how their models are named (common/hf-cache.cpp: get_cached_files, common/download.cpp:
common_list_cached_models); reads no model.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from pyggml_cli import hub

_TAG = re.compile(r"[-.]([A-Za-z0-9_]+)$")
_REPO = re.compile(r"[A-Za-z0-9_]+(?:[.-][A-Za-z0-9_]+)*/[A-Za-z0-9_]+(?:[.-][A-Za-z0-9_]+)*")
_COMMIT = re.compile(r"[0-9a-fA-F]{40}")
LONGEST = 256  # characters of a repository's name
LARGEST = 1 << 20  # bytes of a manifest


def cached_models(environ: Mapping[str, str], home: Path) -> dict[str, Path]:
    """Each model's first file by its name, USER/REPO:QUANT, or the file's own where nothing says what repository it is of.
    Folders that are not there or cannot be read have none."""
    found: dict[str, Path] = {}
    for name, path in (*_in_hub(hub_folder(environ, home)), *_in_flat(flat_folder(environ, home))):
        found.setdefault(name, path)
    return dict(sorted(found.items()))


def hub_folder(environ: Mapping[str, str], home: Path) -> Path:
    """Where fetched repositories are (common/hf-cache.cpp: get_cache_directory)."""
    for variable, *below in (
        ("LLAMA_CACHE",),
        ("HF_HUB_CACHE",),
        ("HUGGINGFACE_HUB_CACHE",),
        ("HF_HOME", "hub"),
        ("XDG_CACHE_HOME", "huggingface", "hub"),
    ):
        if environ.get(variable):
            return Path(environ[variable], *below)
    return home / ".cache" / "huggingface" / "hub"


def flat_folder(environ: Mapping[str, str], home: Path) -> Path:
    """Where llama.cpp fetched files to before it had the hub's layout (common/common.cpp: fs_get_cache_directory)."""
    if environ.get("LLAMA_CACHE"):
        return Path(environ["LLAMA_CACHE"])
    return Path(environ.get("XDG_CACHE_HOME") or home / ".cache") / "llama.cpp"


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _in_hub(folder: Path) -> Iterator[tuple[str, Path]]:
    for repo in _entries(folder):
        name = repo.name.removeprefix("models--").replace("--", "/")
        if not repo.name.startswith("models--") or len(name) > LONGEST or not _REPO.fullmatch(name):
            continue
        commit = _commit(repo / "refs")
        if commit is None:
            continue
        snapshot = repo / "snapshots" / commit
        for path in _files(snapshot):
            tag = _tag(path.name)
            if tag:
                yield f"{name}:{tag}", path


def _files(folder: Path) -> list[Path]:
    """Of a snapshot, its folders included; links that lead nowhere are none."""
    found: list[Path] = []
    for path in _entries(folder):
        if path.is_dir() and not path.is_symlink():
            found += _files(path)
        elif path.is_file():
            found.append(path)
    return found


def _commit(refs: Path) -> str | None:
    """The one that main is, or else any."""
    found = {}
    for path in _entries(refs):
        try:
            with open(path, encoding="ascii") as file:
                commit = file.readline(100).strip()
        except (OSError, UnicodeDecodeError):
            continue
        if _COMMIT.fullmatch(commit):
            found[path.name] = commit
    return found.get("main") or next(iter(found.values()), None)


def _tag(name: str) -> str:
    """The quantisation that a model's file is named after, in capitals; empty where it is no model, or not its first part."""
    if not hub.is_model(name) or not hub.is_first(name):
        return ""
    found = _TAG.search(hub.stem(name))
    return found[1].upper() if found else ""


def _in_flat(folder: Path) -> Iterator[tuple[str, Path]]:
    """manifest=USER=REPO=QUANT.json says which USER_REPO_FILE is the model's; files that none speaks of have their own names."""
    named: set[Path] = set()
    paths = _entries(folder)
    for path in paths:
        words = path.name.removesuffix(".json").split("=")
        if len(words) != 4 or words[0] != "manifest" or not _REPO.fullmatch(f"{words[1]}/{words[2]}"):
            continue
        file = _file_of(path)
        model = folder / f"{words[1]}_{words[2]}_{file.replace('/', '_')}"
        if file and model.is_file():
            named.add(model)
            yield f"{words[1]}/{words[2]}:{words[3].upper()}", model
    for path in paths:
        if path not in named and hub.is_model(path.name) and hub.is_first(path.name) and path.is_file():
            yield path.name.removesuffix(".gguf"), path


def _file_of(manifest: Path) -> str:
    try:
        with open(manifest, "rb") as file:
            found = json.loads(file.read(LARGEST))["ggufFile"]["rfilename"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""
    return found if isinstance(found, str) and ".." not in found.split("/") else ""
