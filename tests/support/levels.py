"""CPU levels other than this process's own: tests of a file run again, assembly, any script, in a process at the level."""

import ast
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from pyggml import jit

TARGETS = {
    "vnni": ("x86-64-v4", "+avx512vnni"),
    "v4": ("x86-64-v4", ""),
    "v3": ("x86-64-v3", ""),
    "v2": ("x86-64-v2", ""),
    "generic": ("x86-64", ""),
}
IS_X86_64 = jit.llvm.get_default_triple().split("-")[0] == "x86_64"
HERE = [level for level in TARGETS if IS_X86_64 and jit.LEVELS.index(level) <= jit.LEVELS.index(jit.level())]
"""Those that this machine has; none where the levels' CPUs are of another architecture."""
OTHERS = [level for level in TARGETS if level != jit.level()]
"""All levels but this process's own, at which the tests run anyway."""


def environment(level: str) -> dict[str, str]:
    name, features = TARGETS[level]
    return {**os.environ, "NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features}


def at_level(level: str, *args: str, timeout: float = 900) -> str:
    """Standard output of a Python process at that level. At this machine's own one it runs the kernels of its very CPU,
    as any process here does."""
    return _run(level, args, dict(os.environ) if level == jit.level() else environment(level), "", timeout)


def _run(level: str, args: Sequence[str], env: dict[str, str], text: str, timeout: float) -> str:
    done = subprocess.run([sys.executable, *args], env=env, input=text, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, f"{level}: exit code {done.returncode}: {done.stderr[-3000:]}"
    return done.stdout


Key = tuple[str, tuple[str | int, ...]]


def assembly_at(level: str, kernels: Sequence[tuple[str, str, str, tuple[str | int, ...]]]) -> dict[Key, str]:
    """Assembly of kernels by the name that they are given here and their arguments; each a name, module, factory,
    arguments. It is that of the level's TARGETS on every machine."""
    script = str(Path(__file__).with_name("assembly.py"))
    printed = _run(level, [script], environment(level), repr(list(kernels)), 900)
    found_level, texts = ast.literal_eval(printed)
    assert found_level == level
    return dict(texts)


def run_at(level: str, file: str, options: Sequence[str] = ()) -> None:
    """Run the tests of `file`, but those whose name has "at_level", at a level; skip where the machine lacks it."""
    if "NUMBA_CPU_NAME" in os.environ:
        pytest.skip("this process is for one level already")
    if not IS_X86_64:
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
