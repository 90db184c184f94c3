"""Compiles the reference's own op tests beside our driver of them, once, into the cache folder.

Owns the compiler's command line. The tests are `tests/test-backend-ops.cpp` of a peer's source distribution, and the
libraries are those of the peer that was built from it: 7.0.0's, or 8.0.0's.
"""

import hashlib
import os
import subprocess
from pathlib import Path

from peer_build import PeerMissing, cpu_key, ensure_peer, locked
from peer_programs import ensure_programs

from pyggml.cachedir import cache_dir

SOURCE = Path(__file__).with_name("conformance_driver.cpp")
LIBRARIES = ("libggml.so.0", "libggml-base.so.0", "libggml-cpu.so.0", "libggml-rpc.so.0")  # those libllama is linked to
OPTIONS = ("-std=c++17", "-O1", "-w", "-pthread")


def ensure_driver(protocol: str = "7") -> Path:
    """The program that conformance_driver.cpp describes, of the peer that speaks "7" or "8"; 20 seconds when it is new.
    Raises PeerMissing."""
    if protocol == "8":
        lib, vendor = ensure_programs()
    else:
        site, vendor = ensure_peer()
        lib = site / "llama_cpp" / "lib"
    names = [str(lib / name) for name in LIBRARIES]
    facts = (
        str(lib),
        cpu_key(),
        SOURCE.read_text(encoding="utf-8"),
        (vendor / "tests" / "test-backend-ops.cpp").read_text(),
        *OPTIONS,
    )
    key = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
    folder = cache_dir("peer") / "conformance"
    folder.mkdir(exist_ok=True)
    program = folder / f"driver-{key}"
    with locked(folder / "lock"):
        if not program.exists():
            fresh = folder / f"fresh.{os.getpid()}"
            includes = (f"-I{vendor / 'tests'}", f"-I{vendor / 'ggml' / 'include'}")
            command = ("c++", *OPTIONS, *includes, str(SOURCE), "-o", str(fresh), *names, f"-Wl,-rpath,{lib}")
            try:
                done = subprocess.run(command, capture_output=True, text=True)
            except FileNotFoundError:
                raise PeerMissing(
                    "no C++ compiler on this machine, so the reference's op tests cannot be built"
                ) from None
            assert done.returncode == 0, done.stderr[-4000:]
            fresh.rename(program)
    return program
