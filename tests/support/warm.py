"""Fills the cache folder with what the tests take longest to make, on all cores at once: `python tests/support/warm.py`.

Owns which kernels that is: those of every CPU level, the CUDA kernels' IR; and meanwhile the stock llama.cpp is built.
What is there already costs seconds. Tests make for themselves what is missing.
"""

import os
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import every_kernel
import hot_kernels
from levels import HERE, at_level
from peer_build import PeerMissing, ensure_peer, ensure_smollm2
from peer_programs import ensure_programs

from pyggml import jit


def peers() -> None:
    """Both builds of llama.cpp, and the model."""
    try:
        ensure_peer()
        ensure_programs()
        ensure_smollm2()
    except PeerMissing as reason:
        print(f"no llama.cpp: {reason}", file=sys.stderr)


def turn(level: str) -> tuple[int, int]:
    """Which share of all kernels is tested at the level (`every_kernel.share`)."""
    return jit.LEVELS.index(level), 1 if level == jit.level() or "PYGGML_ALL_LEVELS" in os.environ else 2


def cpu_kernels() -> None:
    """Two levels at once; the kernels of each are compiled by several processes."""

    def compiled(level: str) -> None:
        start = time.monotonic()
        hot_kernels.assembly(level, hot_kernels.CORE + hot_kernels.REST)  # first: what is compiled for its text is kept
        results = str(Path(folder) / f"{level}.npz")
        at_level(level, every_kernel.__file__, results, *map(str, turn(level)), timeout=3600)
        print(f"CPU kernels at {level}: {time.monotonic() - start:.0f} s", flush=True)

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        list(pool.map(compiled, HERE))


def cuda_kernels() -> None:
    try:
        import numba_cuda  # noqa: F401
    except ImportError:
        return
    from cuda_emulator import kernel_of
    from cuda_test_kernels import SPECS

    from pyggml.kernels.cuda.every import every

    start = time.monotonic()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        made = list(pool.map(kernel_of, [*every(), *SPECS]))
    print(f"IR of {len(made)} CUDA kernels: {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    building = threading.Thread(target=peers)
    building.start()
    cpu_kernels()
    cuda_kernels()
    building.join()
