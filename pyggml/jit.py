"""The one door to the compiler: kernel sources in, addresses of machine code out, compiled once and kept on disk.

Owns the CPU level, the compiler's options and the cache. Knows nothing of what a kernel computes. A kernel is a plain
function made by a factory in `kernels/cpu/`; Numba turns it into an object file, and that object file is what is
cached. A later start links it with llvmlite alone (about 2 ms a kernel) and never imports Numba. Numba's own cache is
not used: it misses for kernels that close over other functions and keeps stale callees from other files.
"""

from __future__ import annotations

import ast
import collections
import contextlib
import ctypes
import functools
import hashlib
import importlib
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import llvmlite
import llvmlite.binding as llvm

from pyggml import sources
from pyggml.cachedir import cache_dir
from pyggml.errors import DeviceError

LEVELS = ("generic", "v2", "v3", "v4", "vnni")
_NEEDS = {  # features that code of a level relies on, beyond those of the level before
    "v2": ("ssse3", "sse4.1"),
    "v3": ("avx2", "fma", "f16c"),
    "v4": ("avx512f", "avx512bw", "avx512dq", "avx512vl"),
    "vnni": ("avx512vnni",),
}
STEP = "void(u64,i64,i64)"
"""Signature of a plan's kernels: address of the step's record, thread number, number of threads."""

F = TypeVar("F", bound=Callable[..., Any])
Progress = Callable[[int, int, str], None]


class Spec(NamedTuple):
    """Which kernel: `factory(*args)` of `pyggml.kernels.cpu.<module>` makes it; a module with a dot is a full name."""

    module: str
    factory: str
    args: tuple[str | int, ...] = ()
    signature: str = STEP

    @property
    def label(self) -> str:
        return re.sub(r"[^\w.-]", "~", "-".join([self.module, self.factory, *map(str, self.args)]))  # it names a file


# ---- the machine


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
        if lack.intersection(_NEEDS[candidate]) or (i > at_least and not have.issuperset(_NEEDS[candidate])):
            break
        best = candidate
    return best


# ---- compiling (the only part that imports Numba)

_CTYPES: dict[str, Any] = {
    "void": None,
    "u64": ctypes.c_uint64,
    "i64": ctypes.c_int64,
    "f32": ctypes.c_float,
    "f64": ctypes.c_double,
}


def _parse(signature: str) -> tuple[str, list[str]]:
    result, _, rest = signature.partition("(")
    return result, [a for a in rest.rstrip(")").split(",") if a]


def _numba() -> Any:
    """The package, set to make code for `target()`."""
    import numba
    import numba.core.config

    config: Any = numba.core.config
    if config.DISABLE_JIT:
        raise DeviceError("kernels cannot be compiled while NUMBA_DISABLE_JIT is set")
    config.CPU_NAME, config.CPU_FEATURES = target()
    return numba


def device(function: F) -> F:
    """Compile a building block that kernels inline."""
    inlined: Any = _numba().njit(forceinline=True, error_model="numpy")(function)
    return inlined  # type: ignore[no-any-return]


def inline(function: F) -> F:
    """As `device`, but taken into its caller before types are inferred. Kernels made of many small parts that are called
    once compile in half the time; a large part that is called often is better off as a `device`."""
    inlined: Any = _numba().njit(inline="always", error_model="numpy")(function)
    return inlined  # type: ignore[no-any-return]


def _compile(spec: Spec) -> tuple[str, bytes, Any]:
    """(symbol, object file, Numba's library)."""
    types = _numba().types
    from numba.core.ccallback import CFunc
    from numba.core.compiler_lock import global_compiler_lock

    kinds = {"void": types.void, "u64": types.uintp, "i64": types.int64, "f32": types.float32, "f64": types.float64}
    function = getattr(importlib.import_module(_full_name(spec)), spec.factory)(*spec.args)
    result, args = _parse(spec.signature)
    # inlined into the C entry point, where the constant status makes the error path (and its symbols) go away
    options = {"nopython": True, "error_model": "numpy", "forceinline": True}
    with global_compiler_lock:
        compiled: Any = CFunc(function, (tuple(kinds[a] for a in args), kinds[result]), {}, options)
        cres = compiled._compile_uncached()
        library = cres.library
        made_for = library.codegen.magic_tuple()[1:]
        if made_for != target():
            raise DeviceError(f"Numba was used before for {made_for}, kernels are wanted for {target()}")
        library.enable_object_caching()
        symbol = cres.fndesc.llvm_cfunc_wrapper_name
        library.get_pointer_to_function(symbol)
        unknown = _undefined(str(library._final_module)) - C_LIBRARY
        assert not unknown, f"{spec.label} calls {sorted(unknown)}, which a process without Numba does not have"
        return symbol, library._get_compiled_object(), library


def _full_name(spec: Spec) -> str:
    return spec.module if "." in spec.module else f"pyggml.kernels.cpu.{spec.module}"


C_LIBRARY = {"sched_yield", "sem_wait", "sem_post", "sin", "cos", "sinf", "cosf"}
"""What kernels may call beside LLVM's own intrinsics (which may become memset, memcpy, sinf, cosf)."""


def _undefined(ir: str) -> set[str]:
    """Names of the functions that a module calls and does not have."""
    names = re.findall(r'^declare [^@]*@"?([^"(]+)"?\(', ir, re.MULTILINE)
    return {n for n in names if not n.startswith("llvm.")}


def assembly(spec: Spec) -> str:
    """The machine code of a kernel as text, compiled anew."""
    text: str = _compile(spec)[2].get_asm_str()
    return text


# ---- the cache of object files

_MAGIC = b"PYGGMLK2"
_CHANGES_CODE = ("NUMBA_OPT", "NUMBA_LOOP_VECTORIZE", "NUMBA_SLP_VECTORIZE", "NUMBA_DEBUGINFO")


@contextlib.contextmanager
def _named(path: Path | None = None) -> Iterator[None]:
    """Failures of the file system become one line with the folder's name."""
    try:
        yield
    except OSError as error:
        raise DeviceError(f"kernel cache {path or error.filename}: {error.strerror}") from None


_COMMON = ("jit.py", "steps.py", "dtypes.py", "simd")
"""What every kernel is made with."""


def _source_files(module: str) -> tuple[Path, ...]:
    return sources.files(module, _COMMON)


def _source_hash(module: str) -> str:
    return sources.digest(module, _COMMON)


@functools.cache
def cache_folder() -> Path:
    """Named by what all machine code depends on: CPU, versions, settings. A file in it is named by its sources too."""
    from importlib.metadata import version

    settings = [f"{name}={os.environ[name]}" for name in _CHANGES_CODE if name in os.environ]
    versions = version("numba"), llvmlite.__version__
    parts = (*target(), level(), llvm.get_default_triple(), *versions, *settings)
    with _named():
        path = cache_dir("kernels") / hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]
        path.mkdir(exist_ok=True)
    return path


def _seal(spec: Spec, body: bytes) -> bytes:
    """Proves that a file is whole, and this kernel's."""
    parts = (cache_folder().name.encode(), repr(tuple(spec)).encode(), _source_hash(_full_name(spec)).encode(), body)
    return hashlib.sha256(b"\0".join(parts)).digest()


def _cache_file(spec: Spec) -> Path:
    return cache_folder() / f"{spec.label}.{_source_hash(_full_name(spec))[:12]}.o"


_FORGET_AFTER = 30 * 86400
"""Seconds after which a kernel made from other sources is deleted."""


def _forget_others(path: Path, spec: Spec) -> None:
    for other in path.parent.glob(f"{spec.label}.{'?' * 12}.o"):
        with contextlib.suppress(OSError):
            if other != path and time.time() - other.stat().st_mtime > _FORGET_AFTER:
                other.unlink()


def _save(spec: Spec, symbol: str, code: bytes) -> None:
    name = symbol.encode()
    body = struct.pack("<I", len(name)) + name + code
    path = _cache_file(spec)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with _named(path.parent):
        temporary.write_bytes(_MAGIC + _seal(spec, body) + body)
        temporary.replace(path)
        _forget_others(path, spec)


def _load(spec: Spec) -> tuple[str, bytes] | None:
    """None when there is no such file, a damaged one, or that of another kernel."""
    try:
        data = _cache_file(spec).read_bytes()
    except OSError:
        return None
    body = data[40:]
    if data[:8] != _MAGIC or _seal(spec, body) != data[8:40]:
        return None
    (length,) = struct.unpack_from("<I", body)
    return body[4 : 4 + length].decode(), body[4 + length :]


@contextlib.contextmanager
def _only_one_process() -> Iterator[None]:
    """Processes that start together compile each kernel once: the others wait here."""
    try:
        import fcntl
    except ImportError:  # no flock on this system: the worst case is that two processes compile the same kernel
        yield
        return
    with _named(cache_folder()):
        lock = open(cache_folder() / "lock", "w")  # noqa: SIM115
    with lock:
        with contextlib.suppress(OSError):  # a file system without locks: as above
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# ---- linking


class _Linker:
    """Machine code made callable in this process. Lives as long as the process: plans hold bare addresses."""

    def __init__(self) -> None:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        machine = llvm.Target.from_default_triple().create_target_machine(jit=True)
        self.engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)

    def link(self, spec: Spec, symbol: str, code: bytes) -> int:
        self.engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        self.engine.finalize_object()
        address: int = self.engine.get_function_address(symbol)
        if not address:
            raise DeviceError(f"kernel {spec.label}: the linker does not find {symbol}")
        return address


class Counts:
    """How many kernels this process compiled and how many it took from the cache."""

    compiled = 0
    loaded = 0


_lock = threading.RLock()  # of all that follows
_addresses: dict[Spec, int] = {}
_progress: Progress | None = None


@functools.cache
def _linker() -> _Linker:
    return _Linker()


def on_compile(callback: Progress | None) -> None:
    """Have `callback(done, total, kernel)` called while kernels are compiled for the first time; None = quiet."""
    global _progress
    _progress = callback


def address(spec: Spec) -> int:
    """Where the kernel's machine code starts."""
    if spec not in _addresses:
        ensure([spec])
    return _addresses[spec]


def function(spec: Spec) -> Callable[..., Any]:
    """The kernel as a Python callable that releases the GIL. Signature words: u64 i64 f32 f64 void."""
    result, args = _parse(spec.signature)
    made: Callable[..., Any] = ctypes.CFUNCTYPE(_CTYPES[result], *(_CTYPES[a] for a in args))(address(spec))
    return made


def ensure(specs: Iterable[Spec]) -> None:
    """Make all of these callable: linked from the cache, compiled where that has not happened on this machine yet.
    Raises DeviceError when the cache cannot be written to."""
    with _lock:
        wanted = [s for s in dict.fromkeys(specs) if s not in _addresses]
        missing = [s for s in wanted if not _link_cached(s)]
        if not missing:
            return
        with _only_one_process():
            missing = [s for s in missing if not _link_cached(s)]
            if missing:
                _compile_all(missing)


def _link_cached(spec: Spec) -> bool:
    found = _load(spec)
    if found is None:
        return False
    _addresses[spec] = _linker().link(spec, *found)
    Counts.loaded += 1
    return True


def _compile_here(spec: Spec) -> None:
    symbol, code, _ = _compile(spec)
    _save(spec, symbol, code)
    _addresses[spec] = _linker().link(spec, symbol, code)
    Counts.compiled += 1


# ---- two processes compile


def _compile_all(specs: list[Spec]) -> None:
    """This process works from the front and, where there is enough to do, another one from the back."""
    left, elsewhere = collections.deque(specs), list[Spec]()
    helper = _start_helper() if len(specs) > 3 and (os.cpu_count() or 1) > 1 else None
    feeder = threading.Thread(target=_feed, args=(helper, left, elsewhere))
    if helper:
        feeder.start()
    try:
        here = 0
        while True:
            try:
                spec = left.popleft()
            except IndexError:
                break
            if _progress:
                _progress(here + len(elsewhere), len(specs), spec.label)
            _compile_here(spec)
            here += 1
    except BaseException:
        if helper:
            left.clear()
            helper.kill()
        raise
    finally:
        if helper:
            feeder.join()
    for spec in specs:
        if spec not in _addresses and not _link_cached(spec):  # it failed there, or that process ended
            _compile_here(spec)
    if _progress:
        _progress(len(specs), len(specs), "")


def _start_helper() -> subprocess.Popen[bytes] | None:
    """A process that runs `_helper`; None where the running program is no plain interpreter."""
    if not os.path.basename(sys.executable or "").lower().startswith(("python", "pypy")) or hasattr(sys, "frozen"):
        return None
    code = f"import sys; sys.path[:] = {sys.path!r}; from pyggml.jit import _helper; _helper()"
    try:
        return subprocess.Popen([sys.executable, "-c", code], bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    except OSError:
        return None


def _feed(helper: subprocess.Popen[bytes], left: collections.deque[Spec], finished: list[Spec]) -> None:
    """A thread's work: hand kernels to the helper one at a time, until none is left or the helper has ended."""
    with helper, contextlib.suppress(IndexError, OSError):
        assert helper.stdin is not None and helper.stdout is not None
        while True:
            spec = left.pop()
            helper.stdin.write(repr(tuple(spec)).encode() + b"\n")
            reply = helper.stdout.readline()
            if not reply:
                return
            if reply == b"done\n":
                finished.append(spec)


def _helper() -> None:
    """Body of the second compiling process: reads specs, a line each, and answers "done" or "failed"."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends this one
    answers = os.dup(1)
    os.dup2(2, 1)  # what anybody else prints is no answer
    for line in sys.stdin:
        spec = Spec(*ast.literal_eval(line))
        try:
            symbol, code, _ = _compile(spec)
            _save(spec, symbol, code)
        except Exception:  # the first process meets it too, and tells
            os.write(answers, b"failed\n")
        else:
            os.write(answers, b"done\n")
