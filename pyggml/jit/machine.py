"""What machine code is made for: the CPU's name, its features, and the level that kernels choose instructions by."""

from __future__ import annotations

import functools
import os

import llvmlite.binding as llvm

LEVELS = ("generic", "v2", "v3", "v4", "vnni")
NEEDS = {  # features that code of a level relies on, beyond those of the level before
    "v2": ("ssse3", "sse4.1"),
    "v3": ("avx2", "fma", "f16c"),
    "v4": ("avx512f", "avx512bw", "avx512dq", "avx512vl"),
    "vnni": ("avx512vnni",),
}


@functools.cache
def target() -> tuple[str, str]:
    """CPU name and feature string that code is made for. NUMBA_CPU_NAME and NUMBA_CPU_FEATURES override the host's."""
    name, features = os.environ.get("NUMBA_CPU_NAME"), os.environ.get("NUMBA_CPU_FEATURES")
    if name is not None or features is not None:
        return name or llvm.get_host_cpu_name(), features or ""
    try:
        return llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    except RuntimeError:  # LLVM does not know how to ask this system
        return llvm.get_host_cpu_name(), ""


_NAMED_LEVELS = {"x86-64-v2": "v2", "x86-64-v3": "v3", "x86-64-v4": "v4"}


@functools.cache
def level() -> str:
    """The widest of LEVELS that the target has all features of."""
    name, features = target()
    have = {f[1:] for f in features.split(",") if f.startswith("+")}
    lack = {f[1:] for f in features.split(",") if f.startswith("-")}
    at_least = LEVELS.index(_NAMED_LEVELS.get(name, "generic"))
    best = "generic"
    for i, candidate in enumerate(LEVELS[1:], 1):
        if lack.intersection(NEEDS[candidate]) or (i > at_least and not have.issuperset(NEEDS[candidate])):
            break
        best = candidate
    return best
