"""A model file by the name of its repository: `-hf USER/REPO:QUANT`. The package huggingface-hub fetches and keeps it, and is
imported when it is asked for (HF_ENDPOINT, HF_HOME, HF_HUB_CACHE and HF_TOKEN are its variables).

Owns the choice of a repository's files, llama.cpp's (common/download.cpp: find_best_model), and what becomes of errors.
"""

import importlib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pyggml.errors import PyggmlError
from pyggml_cli.flags import Flag, Row

REPO = re.compile(r"[\w.-]+/[\w.-]+")
SPLIT = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
NO_MODELS = (
    "mmproj",
    "imatrix",
    "mtp-",
    "eagle3-",
    "dflash-",
    "dspark-",
)  # common/download.cpp: gguf_filename_is_model
FIRST_CHOICES = ("Q4_K_M", "Q8_0")
PATIENCE = 30.0  # seconds for the list of a repository's files
MISSING = "-hf needs the package huggingface-hub: pip install 'pyggml[hf]'"


class HubError(PyggmlError):
    """A repository's file could not be had."""


class Repo(NamedTuple):
    """What -hf says: a repository, and which of its files (QUANT); empty: not said."""

    name: str
    quant: str


def repo(text: str) -> Repo:
    """Parser of USER/REPO and USER/REPO:QUANT."""
    name, _, quant = text.partition(":")
    if not REPO.fullmatch(name) or not re.fullmatch(r"[\w.-]*", quant):
        raise ValueError("must be USER/REPO or USER/REPO:QUANT")
    return Repo(name, quant)


FLAGS: list[Row] = [
    Flag(("-hf", "-hfr", "--hf-repo"), "hf_repo", "model of a repository, fetched once with huggingface-hub; QUANT chooses among its files, "
         "as Q8_0 (Q4_K_M, else Q8_0, else the first)", repo, "USER/REPO[:QUANT]"),
    Flag(("-hff", "--hf-file"), "hf_file", "the file of it, instead of QUANT", str, "FILE"),
    Flag(("-hft", "--hf-token"), "hf_token", "access token for it (HF_TOKEN, or what `hf auth login` has kept)", str, "TOKEN"),
]  # fmt: skip


def is_model(name: str) -> bool:
    """Whether a repository's file is a model, and not something that goes with one."""
    return name.endswith(".gguf") and not any(part in name.rsplit("/", 1)[-1] for part in NO_MODELS)


def choose(names: Sequence[str], quant: str = "") -> str | None:
    """The file for a QUANT, of a split model the first part; without one Q4_K_M, Q8_0 or the first that there is."""
    models = [name for name in sorted(names) if is_model(name) and is_first(name)]
    for wanted in [quant] if quant else FIRST_CHOICES:
        pattern = re.compile(re.escape(wanted) + "[.-]", re.IGNORECASE)
        if found := next(filter(pattern.search, models), None):
            return found
    return None if quant or not models else models[0]


def parts(name: str) -> list[str]:
    """A model's files: those of a split one, all named by one of them, in order."""
    found = SPLIT.fullmatch(name)
    if found is None:
        return [name]
    stem, _, n = found.groups()
    return [f"{stem}-{i:05d}-of-{n}.gguf" for i in range(1, int(n) + 1)]


def is_first(name: str) -> bool:
    """Whether a model's file is its first or only one."""
    found = SPLIT.fullmatch(name)
    return found is None or int(found[2]) == 1


def stem(name: str) -> str:
    """A model's file without its ending and the number of its part."""
    found = SPLIT.fullmatch(name)
    return found[1] if found else name.removesuffix(".gguf")


def fetch(wanted: Repo, file: str | None = None, token: str | None = None, offline: bool = False) -> Path:
    """The model's file, its first one, out of the cache or fetched into it. Offline, and where nobody can be reached, the
    cache is all that there is. Raises HubError."""
    hub = _hub()
    names = None if offline else _listed(hub, wanted.name, token)
    if names is None:
        names = _cached(hub, wanted.name)
        if names is None:
            why = "without --offline it is fetched" if offline else "the hub cannot be reached"
            raise HubError(f"{wanted.name}: it is not in the cache; {why}")
        if not offline:
            print(f"note: {wanted.name}: the hub cannot be reached, the file is the cache's", file=sys.stderr)
        offline = True
    first = _chosen(wanted, file, names, offline)
    for part in parts(first):
        if part not in names:
            where = "the cache" if offline else wanted.name
            raise HubError(f"{wanted.name}: {part} is not in {where}, which has {len(names)} files")
    paths = [_fetched(hub, wanted.name, part, token, offline) for part in parts(first)]
    return paths[0]


def _hub() -> Any:
    """The package, without its bars where nobody looks. Raises HubError."""
    try:
        hub: Any = importlib.import_module("huggingface_hub")
        utils: Any = importlib.import_module("huggingface_hub.utils")
        importlib.import_module("huggingface_hub.errors")  # from now on it is hub.errors
    except ImportError:
        raise HubError(MISSING) from None
    if not sys.stderr.isatty():
        utils.disable_progress_bars()
    utils.logging.set_verbosity_error()
    return hub


def _chosen(wanted: Repo, file: str | None, names: Sequence[str], offline: bool) -> str:
    found = (file if file in names else None) if file else choose(names, wanted.quant)
    if found is not None:
        return parts(found)[0]
    models = [name for name in sorted(names) if is_model(name)]
    asked = f"no file {file}" if file else f"no {wanted.quant}" if wanted.quant else "no GGUF file"
    where = "in the cache" if offline else "there"
    there = f"; {where}: {', '.join(models)[:400]}" if models else ""
    raise HubError(f"{wanted.name}: {asked} {where}{there}")


def _listed(hub: Any, name: str, token: str | None) -> list[str] | None:
    """The repository's files; None where nobody can be reached."""
    try:
        info = hub.HfApi(token=token).model_info(name, timeout=PATIENCE)  # list_repo_files would try for 25 seconds
    except hub.errors.OfflineModeIsEnabled:
        return None
    except Exception as reason:  # of several packages' classes, which change with hub's versions
        if _unreachable(reason):
            return None
        raise HubError(_told(hub, name, reason)) from None
    names = [str(file.rfilename) for file in info.siblings or ()]
    return [name for name in names if not name.startswith("/") and ".." not in name.split("/")]  # those lead out of it


def _cached(hub: Any, name: str) -> list[str] | None:
    """The repository's models that the cache has; None where it has nothing of it."""
    try:
        folder = Path(hub.snapshot_download(name, local_files_only=True))
    except Exception:  # whatever it is: there is no such folder
        return None
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*.gguf") if path.exists()]


def _fetched(hub: Any, name: str, file: str, token: str | None, offline: bool) -> Path:
    try:
        if not offline and not isinstance(hub.try_to_load_from_cache(name, file), str):
            print(f"fetching {name}/{file}, once", file=sys.stderr, flush=True)
        return Path(hub.hf_hub_download(name, file, token=token, local_files_only=offline))
    except Exception as reason:
        raise HubError(_told(hub, f"{name}: {file}", reason)) from None


def _unreachable(reason: BaseException | None) -> bool:
    """Whether no server answered: an HTTP client's own errors of connecting, by their names."""
    names = {kind.__name__ for kind in type(reason).__mro__}
    return bool(names & {"ConnectError", "ConnectTimeout", "ConnectionError", "ProxyError", "Timeout"}) and not hasattr(
        reason, "server_message"
    )


def _told(hub: Any, what: str, reason: Exception) -> str:
    errors = hub.errors
    if isinstance(reason, errors.GatedRepoError):
        return f"{what}: who may have it is asked for a token: --hf-token, or HF_TOKEN"
    if isinstance(reason, errors.RepositoryNotFoundError):
        return f"{what}: there is no such repository, or it is private and wants a token: --hf-token, or HF_TOKEN"
    if isinstance(reason, errors.LocalEntryNotFoundError):
        cause = reason.__cause__  # what the hub answered, where it was asked
        if isinstance(cause, Exception):
            return f"{what}: the hub cannot be reached" if _unreachable(cause) else _told(hub, what, cause)
        return f"{what}: it is not in the cache"
    if isinstance(reason, errors.EntryNotFoundError):
        return f"{what}: it is not there"
    status = getattr(getattr(reason, "response", None), "status_code", None)
    if status is not None:
        return f"{what}: the hub answered with status {status}"
    if isinstance(reason, OSError) and reason.strerror:
        return f"{what}: {os.fspath(reason.filename or '')}: {reason.strerror}"
    said = str(reason).strip().splitlines() or [type(reason).__name__]
    return f"{what}: it cannot be fetched: {said[0][:300]}"
