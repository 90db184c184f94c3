"""llama.cpp's gguf-split, compiled once from the peer's source distribution against the peer's libraries.

Owns the compiler's command line and what the tool's source wants from llama.cpp's common code.
"""

import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

from peer_build import PeerMissing, cpu_key, ensure_peer, locked

from pyggml.cachedir import cache_dir

SOURCE = "tools/gguf-split/gguf-split.cpp"
LIBRARIES = ("libllama.so.0", "libggml.so.0", "libggml-base.so.0")
OPTIONS = ("-std=c++17", "-O1", "-w")
HEADERS = {  # three keys and four facts for --version are all that it takes from common/
    "common.h": """
        const char * const LLM_KV_SPLIT_NO = "split.no";
        const char * const LLM_KV_SPLIT_COUNT = "split.count";
        const char * const LLM_KV_SPLIT_TENSORS_COUNT = "split.tensors.count";
    """,
    "build-info.h": """
        inline int llama_build_number() { return 0; }
        inline const char * llama_commit() { return ""; }
        inline const char * llama_compiler() { return ""; }
        inline const char * llama_build_target() { return ""; }
    """,
}


def ensure_gguf_split() -> Path:
    """The program; a few seconds when it is new. Raises PeerMissing."""
    site, vendor = ensure_peer()
    lib = site / "llama_cpp" / "lib"
    key = hashlib.sha256("\n".join((cpu_key(), *HEADERS.values(), *OPTIONS)).encode()).hexdigest()[:16]
    folder = cache_dir("peer") / "gguf-split"
    folder.mkdir(exist_ok=True)
    program = folder / f"gguf-split-{key}"
    with locked(folder / "lock"), tempfile.TemporaryDirectory() as headers:
        if not program.exists():
            for name, text in HEADERS.items():
                (Path(headers) / name).write_text(text)
            fresh = folder / f"fresh.{os.getpid()}"
            includes = (f"-I{headers}", f"-I{vendor / 'include'}", f"-I{vendor / 'ggml' / 'include'}")
            libraries = [str(lib / name) for name in LIBRARIES]
            command = (
                "c++",
                *OPTIONS,
                *includes,
                str(vendor / SOURCE),
                "-o",
                str(fresh),
                *libraries,
                f"-Wl,-rpath,{lib}",
            )
            try:
                done = subprocess.run(command, capture_output=True, text=True)
            except FileNotFoundError:
                raise PeerMissing("no C++ compiler on this machine, so gguf-split cannot be built") from None
            assert done.returncode == 0, done.stderr[-4000:]
            fresh.rename(program)
    return program


def gguf_split(*args: object) -> None:
    """Run it; a failure shows what it said."""
    done = subprocess.run([str(ensure_gguf_split()), *map(str, args)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
