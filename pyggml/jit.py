"""The one door to the compiler: kernel sources in, addresses of machine code out, compiled once and kept on disk.

Owns the CPU level, the compiler's options and the cache. Knows nothing of what a kernel computes. A kernel is a plain
function made by a factory in `kernels/cpu/`; Numba turns it into an object file, and that object file is what is
cached. A later start links it with llvmlite alone (about 2 ms a kernel) and never imports Numba. Numba's own cache is
not used: it misses for kernels that close over other functions and keeps stale callees from other files.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import re
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import llvmlite
import llvmlite.binding as llvm

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
    """Which kernel: `factory(*args)` of `pyggml.kernels.cpu.<module>` makes it."""

    module: str
    factory: str
    args: tuple[str | int, ...] = ()
    signature: str = STEP

    @property
    def label(self) -> str:
        return "-".join([self.module, self.factory, *map(str, self.args)]).replace("/", "~")  # it names a file


# ---- the machine


@functools.cache
def target() -> tuple[str, str]:
    """CPU name and feature string that code is made for. NUMBA_CPU_NAME and NUMBA_CPU_FEATURES override the host's."""
    name, features = os.environ.get("NUMBA_CPU_NAME"), os.environ.get("NUMBA_CPU_FEATURES")
    if name is not None or features is not None:
        return name or llvm.get_host_cpu_name(), features or ""
    return llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()


_NAMED_LEVELS = {"x86-64-v2": "v2", "x86-64-v3": "v3", "x86-64-v4": "v4"}


@functools.cache
def level() -> str:
    """The widest of LEVELS that the target has all features of."""
    name, features = target()
    have = {f[1:] for f in features.split(",") if f.startswith("+")}
    at_least = LEVELS.index(_NAMED_LEVELS.get(name, "generic"))
    best = "generic"
    for i, candidate in enumerate(LEVELS[1:], 1):
        if i > at_least and not have.issuperset(_NEEDS[candidate]):
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


def device(function: F) -> F:
    """Compile a building block that kernels inline."""
    import numba

    inlined: Any = numba.njit(forceinline=True, error_model="numpy")(function)
    return inlined  # type: ignore[no-any-return]


def _compile(spec: Spec) -> tuple[str, bytes, Any]:
    """(symbol, object file, Numba's library)."""
    import importlib

    from numba import types
    from numba.core.ccallback import CFunc
    from numba.core.compiler_lock import global_compiler_lock

    kinds = {"void": types.void, "u64": types.uintp, "i64": types.int64, "f32": types.float32, "f64": types.float64}
    module = importlib.import_module(f"pyggml.kernels.cpu.{spec.module}")
    function = getattr(module, spec.factory)(*spec.args)
    result, args = _parse(spec.signature)
    # inlined into the C entry point, where the constant status makes the error path (and its symbols) go away
    options = {"nopython": True, "error_model": "numpy", "forceinline": True}
    with global_compiler_lock:
        compiled: Any = CFunc(function, (tuple(kinds[a] for a in args), kinds[result]), {}, options)
        cres = compiled._compile_uncached()
        library = cres.library
        library.enable_object_caching()
        symbol = cres.fndesc.llvm_cfunc_wrapper_name
        library.get_pointer_to_function(symbol)
        unknown = _undefined(str(library._final_module)) - C_LIBRARY
        assert not unknown, f"{spec.label} calls {sorted(unknown)}, which a process without Numba does not have"
        return symbol, library._get_compiled_object(), library


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

_MAGIC = b"PYGGMLK1"


@functools.cache
def _source_hash() -> str:
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(
        [*root.glob("*.py"), *root.glob("kernels/cpu/**/*.py"), *root.glob("quants/*.py"), *root.glob("simd/*.py")]
    ):
        if path.parent == root and path.name not in ("jit.py", "steps.py", "dtypes.py"):
            continue
        digest.update(path.read_bytes())
    return digest.hexdigest()


@functools.cache
def cache_folder() -> Path:
    """Named by all that machine code depends on: CPU, sources, versions."""
    from importlib.metadata import version

    parts = (*target(), level(), sys.platform, _source_hash(), version("numba"), llvmlite.__version__)
    path = cache_dir("kernels") / hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]
    path.mkdir(exist_ok=True)
    return path


def _cache_file(spec: Spec) -> Path:
    return cache_folder() / f"{spec.label}.o"


def _save(spec: Spec, symbol: str, code: bytes) -> None:
    name = symbol.encode()
    body = struct.pack("<I", len(name)) + name + code
    path = _cache_file(spec)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_bytes(_MAGIC + hashlib.sha256(body).digest() + body)
    temporary.replace(path)


def _load(spec: Spec) -> tuple[str, bytes] | None:
    """None when there is no such file, or a damaged one."""
    try:
        data = _cache_file(spec).read_bytes()
    except FileNotFoundError:
        return None
    body = data[40:]
    if data[:8] != _MAGIC or hashlib.sha256(body).digest() != data[8:40]:
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
    with open(cache_folder() / "lock", "w") as lock:
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
        self.addresses: dict[Spec, int] = {}

    def link(self, spec: Spec, symbol: str, code: bytes) -> int:
        self.engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        self.engine.finalize_object()
        address: int = self.engine.get_function_address(symbol)
        if not address:
            raise DeviceError(f"kernel {spec.label}: the linker does not find {symbol}")
        self.addresses[spec] = address
        return address


class Counts:
    """How many kernels this process compiled and how many it took from the cache."""

    compiled = 0
    loaded = 0


_lock = threading.RLock()
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
    found = _linker().addresses.get(spec)
    if found is None:
        ensure([spec])
        found = _linker().addresses[spec]
    return found


def function(spec: Spec) -> Callable[..., Any]:
    """The kernel as a Python callable that releases the GIL. Signature words: u64 i64 f32 f64 void."""
    result, args = _parse(spec.signature)
    made: Callable[..., Any] = ctypes.CFUNCTYPE(_CTYPES[result], *(_CTYPES[a] for a in args))(address(spec))
    return made


def ensure(specs: Iterable[Spec]) -> None:
    """Make all of these callable: linked from the cache, compiled where that has not happened on this machine yet."""
    with _lock:
        linker = _linker()
        wanted = [s for s in dict.fromkeys(specs) if s not in linker.addresses]
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
    _linker().link(spec, *found)
    Counts.loaded += 1
    return True


def _compile_all(specs: list[Spec]) -> None:
    """This process works from the front and, where there is enough to do, another one from the back."""
    helper = None
    claims = cache_folder() / f"claims.{os.getpid()}"
    if len(specs) > 3 and (os.cpu_count() or 1) > 1 and sys.executable:
        claims.mkdir(exist_ok=True)
        helper = subprocess.Popen(
            [sys.executable, "-c", "from pyggml.jit import _helper; _helper()", str(claims)],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        assert helper.stdin is not None
        helper.stdin.write(repr([tuple(s) for s in reversed(specs)]).encode())
        helper.stdin.close()
    for i, spec in enumerate(specs):
        if _progress:
            _progress(i, len(specs), spec.label)
        if helper is None or _claim(claims, spec):
            symbol, code, _ = _compile(spec)
            _save(spec, symbol, code)
            _linker().link(spec, symbol, code)
            Counts.compiled += 1
    if helper is not None:
        helper.wait()
        for path in claims.iterdir():
            path.unlink()
        claims.rmdir()
        for spec in specs:
            if spec not in _linker().addresses and not _link_cached(spec):
                symbol, code, _ = _compile(spec)
                _save(spec, symbol, code)
                _linker().link(spec, symbol, code)
                Counts.compiled += 1
    if _progress:
        _progress(len(specs), len(specs), "")


def _claim(folder: Path, spec: Spec) -> bool:
    try:
        (folder / spec.label).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _helper() -> None:
    """Body of the second compiling process: specs on standard input, the folder of claims as argument."""
    import ast

    claims = Path(sys.argv[1])
    for fields in ast.literal_eval(sys.stdin.read()):
        spec = Spec(*fields)
        try:
            mine = _claim(claims, spec)
        except FileNotFoundError:  # the first process is done, or gone
            return
        if mine:
            symbol, code, _ = _compile(spec)
            _save(spec, symbol, code)
