"""The only way to the compiler: kernel sources in, addresses of machine code out, compiled once and kept on disk.

Owns which kernels this process has, and linking. Knows nothing of what a kernel computes. A kernel is a plain function
made by a factory in `kernels/cpu/`; Numba turns it into an object file (compiling.py), in a process of its own
(worker.py, pool.py), and that object file is what is kept (store.py). A later start links it with llvmlite alone (about
2 ms a kernel) and never imports Numba. Numba's own cache is not used: it misses for kernels that close over other
functions and keeps stale callees from other files.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import llvmlite.binding as llvm

from pyggml.errors import ComputeError, DeviceError
from pyggml.jit import compiling, store
from pyggml.jit.added import made_with
from pyggml.jit.compiling import Code, device, inline
from pyggml.jit.machine import LEVELS, level, target
from pyggml.jit.pool import Job, Pool
from pyggml.jit.spec import CALL, CTYPES, STEP, Spec, parse

__all__ = [
    "CALL", "LEVELS", "STEP", "Counts", "Job", "Spec", "address", "announce", "assembly", "device", "ensure", "function",
    "inline", "interrupt", "level", "made_with", "on_compile", "prepare", "target", "wait",
]  # fmt: skip

Progress = Callable[[int, int, str], None]

TICK = 0.1  # seconds between calls of a progress callback
QUIET = 0.3  # seconds of waiting that nobody is told of


class Counts:
    """How many kernels this process had compiled and how many it took from the cache; seconds waited for compiling."""

    compiled = 0
    loaded = 0
    seconds = 0.0


# ---- linking


class _Linker:
    """Machine code made callable in this process. Lives as long as the process: plans hold bare addresses."""

    def __init__(self) -> None:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        machine = llvm.Target.from_default_triple().create_target_machine(jit=True)
        self.engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)

    def link(self, spec: Spec, code: Code) -> int:
        self.engine.add_object_file(llvm.ObjectFileRef.from_data(code.object_file))
        self.engine.finalize_object()
        address: int = self.engine.get_function_address(code.symbol)
        if not address:
            raise DeviceError(f"kernel {spec.label}: the linker does not find {code.symbol}")
        return address


_linking = threading.RLock()  # of the linker and of what follows; held for milliseconds
_addresses: dict[Spec, int] = {}


@functools.cache
def _linker() -> _Linker:
    return _Linker()


def _link(spec: Spec, code: Code, compiled: bool) -> None:
    with _linking:
        if spec not in _addresses:
            _addresses[spec] = _linker().link(spec, code)
            Counts.compiled += compiled
            Counts.loaded += not compiled


@functools.cache
def _pool() -> Pool:
    return Pool(_link)


if hasattr(os, "register_at_fork"):  # a child has the kernels, but neither the threads nor the compiling processes

    def _begin_anew() -> None:
        _pool.cache_clear()
        _linking.release()

    os.register_at_fork(before=_linking.acquire, after_in_parent=_linking.release, after_in_child=_begin_anew)


# ---- kernels for who needs them


def address(spec: Spec) -> int:
    """Where the kernel's machine code starts."""
    if spec not in _addresses:
        ensure([spec])
    return _addresses[spec]


def function(spec: Spec) -> Callable[..., Any]:
    """The kernel as a Python callable that releases the GIL. Signature words: u64 i64 f32 f64 void."""
    result, args = parse(spec.signature)
    made: Callable[..., Any] = ctypes.CFUNCTYPE(CTYPES[result], *(CTYPES[a] for a in args))(address(spec))
    return made


def ensure(specs: Iterable[Spec]) -> None:
    """Make all of these callable: linked from the cache, compiled where that has not happened on this machine yet.

    A cache that cannot be used costs time, never the run: kernels are then compiled for this process alone. Raises
    DeviceError when Numba cannot compile, ComputeError after `interrupt`.
    """
    wait(prepare(specs))


def prepare(specs: Iterable[Spec]) -> list[Job]:
    """Begin what `ensure` does and do not wait for what has to be compiled."""
    missing = []
    for spec in dict.fromkeys(specs):
        if spec not in _addresses:
            code = store.load(spec)
            if code is None:
                missing.append(spec)
            else:
                _link(spec, code, False)
    return _pool().submit(missing) if missing else []


def assembly(spec: Spec) -> str:
    """The machine code of a kernel as text; compiled in this process unless the text is kept on disk, and then the kernel is
    kept too. Raises as `ensure`."""
    text = store.load_assembly(spec)
    if text is None:
        code, text = compiling.with_assembly(spec)
        store.save_assembly(spec, text)
        if store.load(spec) is None:
            store.save(spec, code)
    return text


# ---- waiting for the compiler

_progress: Progress | None = None
_announce: Callable[[str], None] | None = None
_interruptions = 0


def on_compile(callback: Progress | None) -> None:
    """Have `callback(done, total, kernel)` called, ten times a second, while somebody waits for kernels that are compiled
    for the first time; None = quiet."""
    global _progress
    _progress = callback


def announce(say: Callable[[str], None] | None) -> None:
    """Have one line said, once, when kernels are compiled and `on_compile` shows nothing; None = quiet."""
    global _announce
    _announce = say


def interrupt() -> None:
    """Let everyone who waits for the compiler stop waiting, with ComputeError; from any thread. Compiling goes on."""
    global _interruptions
    _interruptions += 1


def wait(jobs: list[Job]) -> None:
    """Until all are done. Raises as `ensure`."""
    if not jobs:
        return
    start, before = time.monotonic(), _interruptions
    said = False
    with _timer():
        while True:
            left = [job for job in jobs if not job.done.is_set()]
            for job in jobs:
                if job.done.is_set() and job.error is not None:
                    raise job.error
            done, label = len(jobs) - len(left), left[0].spec.label if left else ""
            if _progress is not None:
                _progress(done, len(jobs), label)
            elif not said and time.monotonic() - start > QUIET:
                said = True
                _say(len(jobs))
            if not left:
                return
            if _interruptions != before:
                raise ComputeError(f"interrupted, while {len(left)} kernels were being compiled")
            left[0].done.wait(TICK)


def _say(count: int) -> None:
    global _announce
    say, _announce = _announce, None
    if say is not None:
        say(f"compiling {count} kernel{'s' * (count != 1)}, which later starts find on disk ...")


@contextlib.contextmanager
def _timer() -> Iterator[None]:
    start = time.monotonic()
    try:
        yield
    finally:
        Counts.seconds += time.monotonic() - start
