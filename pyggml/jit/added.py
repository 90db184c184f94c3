"""What packages that add types to this one tell the compiler: which modules their kernels are made of, too.

A kernel says by a name among its arguments which type it is for. That of a type of another package depends on files which
nothing here imports, and a process that compiles it has to import them first.
"""

from __future__ import annotations

from pyggml.jit.spec import Spec

_modules: dict[str, tuple[str, ...]] = {}


def made_with(name: str, *modules: str) -> None:
    """Kernels with `name` among their arguments, in capitals or small letters, are made of these modules too."""
    _modules[name] = modules


def modules_of(spec: Spec) -> tuple[str, ...]:
    """Of a kernel, beside its own, in the order in which they are to be imported."""
    if not _modules:
        return ()
    names = [arg.rstrip("/").upper() for arg in spec.args if isinstance(arg, str)]
    return tuple(dict.fromkeys(module for name in names for module in _modules.get(name, ())))
