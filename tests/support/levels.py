"""Runs tests of a file again in a process for each CPU level. Must not know what they test."""

import os
import subprocess
import sys
from collections.abc import Sequence

import pytest

from pyggml import jit

TARGETS = {
    "vnni": ("x86-64-v4", "+avx512vnni"),
    "v4": ("x86-64-v4", ""),
    "v3": ("x86-64-v3", ""),
    "v2": ("x86-64-v2", ""),
    "generic": ("x86-64", ""),
}
OTHERS = [level for level in TARGETS if level != jit.level()]
"""All levels but this process's own, at which the tests run anyway."""


def environment(level: str) -> dict[str, str]:
    name, features = TARGETS[level]
    return {**os.environ, "NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features}


def run_at(level: str, file: str, options: Sequence[str] = ()) -> None:
    """Run the tests of `file`, but those whose name has "at_level", at a level; skip where the machine lacks it."""
    if "NUMBA_CPU_NAME" in os.environ:
        pytest.skip("this process is for one level already")
    if jit.llvm.get_default_triple().split("-")[0] != "x86_64":
        pytest.skip("levels other than generic are those of x86-64")
    if jit.LEVELS.index(level) > jit.LEVELS.index(jit.level()):
        pytest.skip(f"this machine has level {jit.level()} only")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "-k",
        "not at_level",
        *options,
        file,
    ]
    done = subprocess.run(command, env=environment(level), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{level}: {done.stdout[-4000:]}{done.stderr[-2000:]}"
