"""Gets and builds the programs of llama.cpp of protocol 8.0.0 once, into the cache folder.

Owns the pin, what is unpacked of its source distribution, and the targets. An interrupted build goes on where it was.
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import NamedTuple

from peer_build import WITHOUT_AMX, Say, cpu_key, locked, needs_linux_and_a_compiler, pip, sdist, to_stderr, unpack

from pyggml.cachedir import cache_dir

PROJECT, VERSION, BUILD = "xllamacpp", "2026.10.11549", "11549"
SDIST = f"{PROJECT}-{VERSION}"
SOURCE = f"{SDIST}/thirdparty/llama.cpp/"
# what is built, read by tests (vocabularies, cases), or asked for by CMakeLists.txt; of backends CPU and RPC alone
WANTED = re.compile(
    r"CMakeLists\.txt|LICENSE|licenses/|cmake/|scripts/ui-assets\.cmake|(common|include|models|src|tests|vendor)/"
    r"|ggml/(CMakeLists\.txt|cmake/|include/|src/([^/]+$|ggml-(cpu|rpc)/))"
    r"|tools/(CMakeLists\.txt|ui/[^/]+$|(?!ui/)[^/]+/)"
)
OPTIONS = (
    *("-DCMAKE_BUILD_TYPE=Release", "-DGGML_RPC=ON", "-DGGML_NATIVE=ON", f"-DLLAMA_BUILD_NUMBER={BUILD}"),
    *("-DLLAMA_BUILD_TESTS=ON", "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_APP=OFF", "-DLLAMA_OPENSSL=OFF"),
    *WITHOUT_AMX,
    *("-DLLAMA_BUILD_UI=OFF", "-DLLAMA_USE_PREBUILT_UI=OFF"),  # nothing is fetched while it is built
)
TARGETS = (
    *("ggml-rpc-server", "llama-completion", "llama-bench", "llama-batched-bench", "llama-perplexity"),
    *("llama-quantize", "llama-server", "test-rpc-multi-server", "test-backend-ops", "test-llama-archs"),
)


class Programs(NamedTuple):
    """`bin` holds the programs and the shared libraries, `source` is the unpacked llama.cpp."""

    bin: Path
    source: Path


def source(root: Path) -> Path:
    home = root / SDIST
    if not home.exists():
        fresh = root / f"{SDIST}.{os.getpid()}"
        try:
            with tarfile.open(sdist(root, PROJECT, VERSION, SDIST)) as tar:
                wanted = [m for m in tar if m.name.startswith(SOURCE) and WANTED.match(m.name, len(SOURCE))]
                unpack(tar, fresh, wanted)
            (fresh / SDIST).rename(home)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return root / SOURCE


def tools(root: Path) -> dict[str, str]:
    """The environment in which cmake and ninja are found: this machine's, else the package index's."""
    env = dict(os.environ)
    if not (shutil.which("cmake") and shutil.which("ninja")):
        home = root / "cmake"
        if not home.exists():
            fresh = root / f"cmake.{os.getpid()}"
            pip("install", "--target", str(fresh), "cmake", "ninja")
            fresh.rename(home)
        env["PATH"] = f"{home / 'bin'}{os.pathsep}{env['PATH']}"
        env["PYTHONPATH"] = str(home)
    return env


def build(tree: Path, home: Path, env: dict[str, str], say: Say) -> None:
    """Says how far it is at each tenth of the way."""
    nice = ["nice", "-n", "5"] if shutil.which("nice") else []
    subprocess.run(
        [*nice, "cmake", "-S", str(tree), "-B", str(home), "-G", "Ninja", *OPTIONS],
        **{"check": True, "stdout": sys.stderr, "env": env},
    )
    command = [*nice, "cmake", "--build", str(home), "--target", *TARGETS]
    printed, said = [], 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env) as process:
        assert process.stdout is not None
        for line in process.stdout:
            printed = [*printed[-99:], line]
            step = re.match(r"\[(\d+)/(\d+)\]", line)
            if step is None:
                continue
            done, of = (int(n) for n in step.groups())
            if 10 * done // of > said:
                said = 10 * done // of
                say(f"building llama.cpp b{BUILD}: {done} of {of}")
    assert process.returncode == 0, "".join(printed)


def ensure_programs(say: Say = to_stderr) -> Programs:
    """Built and unpacked when they are missing; ten minutes on two cores. Raises PeerMissing."""
    root = cache_dir("peer")
    home = root / f"b{BUILD}-{cpu_key(' '.join((*OPTIONS, *TARGETS)))}"
    done = home / "done"
    if done.exists() and (root / SOURCE).exists():
        return Programs(home / "bin", root / SOURCE)
    with locked(root / "lock"):
        tree = source(root)
        if not done.exists():
            needs_linux_and_a_compiler()
            say(f"building llama.cpp b{BUILD} of RPC protocol 8.0.0, once (minutes)")
            build(tree, home, tools(root), say)
            for left in home.iterdir():  # a gigabyte of objects
                if left.name != "bin":
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
            done.touch()
    return Programs(home / "bin", tree)


if __name__ == "__main__":
    print(*ensure_programs(), sep="\n")
