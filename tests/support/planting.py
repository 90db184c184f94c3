"""Kernels that are planted for tests of the package jit, a process that begins anew, and others beside it."""

import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyggml import jit
from pyggml.jit import Spec, pool, store

SUPPORT = Path(__file__).parent

SECOND = """
import sys
from pyggml import jit
from pyggml.jit import Spec
specs = [Spec("primitive_kernels.planted", "number", (n,), "i64(i64)") for n in range(2)]
jit.ensure(specs)
print(jit.Counts.compiled, jit.Counts.loaded, [jit.function(s)(5) for s in specs], "numba" in sys.modules)
"""
"""A program that has two kernels compiled, or finds them in the cache."""


def spec(name: str, *args: str | int) -> Spec:
    """A kernel of primitive_kernels/planted.py."""
    return Spec("primitive_kernels.planted", name, args, "i64(i64)")


def numbers(count: int, name: str = "number") -> list[Spec]:
    """Kernels that add 0, 1, 2..."""
    return [spec(name, n) for n in range(count)]


@pytest.fixture
def restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Has this process begin anew with an empty cache; to be called for a second start with what is cached now."""
    monkeypatch.setenv("PYGGML_CACHE", str(tmp_path / "cache"))
    pools: list[pool.Pool] = []

    def make_pool() -> pool.Pool:
        pools.append(pool.Pool(jit._link))
        return pools[-1]

    def start() -> None:
        for where, name in ((store, "folder"), (store, "warn_not_kept"), (pool, "_lock_file")):
            monkeypatch.setattr(where, name, functools.cache(getattr(where, name).__wrapped__))
        monkeypatch.setattr(jit, "_linker", functools.cache(jit._Linker))
        monkeypatch.setattr(jit, "_pool", functools.cache(make_pool))
        monkeypatch.setattr(jit, "_addresses", {})
        monkeypatch.setattr(jit.Counts, "compiled", 0)
        monkeypatch.setattr(jit.Counts, "loaded", 0)

    start()
    yield start
    for made in pools:
        made.close()


def run(script: str, tmp_path: Path, **env: str) -> str:
    """Standard output of a Python process whose cache is `tmp_path`."""
    done = start(script, tmp_path, **env)
    out, err = done.communicate(timeout=300)
    assert done.returncode == 0, err
    return str(out)


def start(script: str, tmp_path: Path, **env: str) -> "subprocess.Popen[str]":
    """A Python process whose cache is `tmp_path` / "cache", and which finds the planted kernels."""
    everything = {**os.environ, "PYGGML_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(SUPPORT), **env}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", script], env=everything, stdout=pipe, stderr=pipe, text=True)
