"""From a kernel's Python function to an object file: the only part that imports Numba.

Owns the compiler's options and what an object file may call. Importing this module does not import Numba.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from pyggml.errors import DeviceError
from pyggml.jit import machine
from pyggml.jit.spec import Spec, parse
from pyggml.quick_numba import no_collector

F = TypeVar("F", bound=Callable[..., Any])

C_LIBRARY = {"sched_yield", "sem_wait", "sem_post", "sin", "cos", "sinf", "cosf"}
"""What kernels may call beside LLVM's own intrinsics (which may become memset, memcpy, sinf, cosf)."""


class Code(NamedTuple):
    """An object file, and the name of the kernel's entry in it."""

    symbol: str
    object_file: bytes


def _numba() -> Any:
    """The package, set to make code for `machine.target()`."""
    import numba
    import numba.core.config

    config: Any = numba.core.config
    if config.DISABLE_JIT:
        raise DeviceError("kernels cannot be compiled while NUMBA_DISABLE_JIT is set")
    config.CPU_NAME, config.CPU_FEATURES = machine.target()
    return numba


def device(function: F) -> F:
    """Compile a building block that kernels inline."""
    inlined: Any = _numba().njit(forceinline=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)(
        function
    )
    return inlined  # type: ignore[no-any-return]


def inline(function: F) -> F:
    """As `device`, but taken into its caller before types are inferred. Kernels made of many small parts that are called
    once compile in half the time; a large part that is called often is better off as a `device`."""
    inlined: Any = _numba().njit(inline="always", error_model="numpy")(function)
    return inlined  # type: ignore[no-any-return]


def compile_spec(spec: Spec) -> Code:
    """Compile a kernel, here and now. Raises DeviceError for settings of Numba under which that does not work."""
    return _compile(spec)[0]


def with_assembly(spec: Spec) -> tuple[Code, str]:
    """As `compile_spec`, and the machine code as text."""
    code, library = _compile(spec)
    return code, library.get_asm_str()


def _compile(spec: Spec) -> tuple[Code, Any]:
    """The code, and Numba's library of it."""
    types = _numba().types
    from numba.core.ccallback import CFunc
    from numba.core.compiler_lock import global_compiler_lock

    kinds = {"void": types.void, "u64": types.uintp, "i64": types.int64, "f32": types.float32, "f64": types.float64}
    function = getattr(importlib.import_module(spec.full_module), spec.factory)(*spec.args)
    result, args = parse(spec.signature)
    # inlined into the C entry point, where the constant status makes the error path (and its symbols) go away
    options = {"nopython": True, "error_model": "numpy", "forceinline": True}
    with global_compiler_lock, no_collector():
        compiled: Any = CFunc(function, (tuple(kinds[a] for a in args), kinds[result]), {}, options)
        cres = compiled._compile_uncached()
        library = cres.library
        made_for = library.codegen.magic_tuple()[1:]
        if made_for != machine.target():
            raise DeviceError(f"Numba was used before for {made_for}, kernels are wanted for {machine.target()}")
        library.enable_object_caching()
        symbol = cres.fndesc.llvm_cfunc_wrapper_name
        library.get_pointer_to_function(symbol)
        unknown = _undefined_symbols(str(library._final_module)) - C_LIBRARY
        assert not unknown, f"{spec.label} calls {sorted(unknown)}, which a process without Numba does not have"
        return Code(symbol, library._get_compiled_object()), library


def _undefined_symbols(ir: str) -> set[str]:
    """Names of the functions that a module calls and does not have."""
    names = re.findall(r'^declare [^@]*@"?([^"(]+)"?\(', ir, re.MULTILINE)
    return {n for n in names if not n.startswith("llvm.")}
