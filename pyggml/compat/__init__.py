"""What is written for llama-cpp-python runs on pyggml: `import llama_cpp` finds pyggml.compat.llama_cpp.

Owns the step from that name to this package, which only `install` or `python -m pyggml.compat PROGRAM` takes. Importing it
loads nothing else.
"""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

HERE = "pyggml.compat"
NAME = "llama_cpp"


class _Finder:
    """Gives `llama_cpp` and the modules in it the modules here, so that they are there once under two names."""

    def __init__(self) -> None:
        self._specs: dict[str, ModuleSpec | None] = {}

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """As importlib asks it."""
        if name.partition(".")[0] != NAME:
            return None
        real = importlib.util.find_spec(f"{HERE}.{name}")
        if real is None:
            return None
        return ModuleSpec(name, self, is_package=real.submodule_search_locations is not None)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """As importlib asks it."""
        module = importlib.import_module(f"{HERE}.{spec.name}")
        self._specs[spec.name] = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """It has been executed; importlib has given it another specification."""
        module.__spec__ = self._specs.get(module.__name__.removeprefix(f"{HERE}."))


_FINDER = _Finder()


def install() -> None:
    """From now on `import llama_cpp` gives pyggml.compat.llama_cpp, also where llama-cpp-python is installed; again does
    nothing. Raises ImportError where another llama_cpp has been imported before."""
    there = sys.modules.get(NAME)
    if there is not None and there.__name__ != f"{HERE}.{NAME}":
        raise ImportError(
            f"another llama_cpp is imported already: {there.__file__}; call pyggml.compat.install() before"
        )
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)


def uninstall() -> None:
    """Later imports of `llama_cpp` find what they would have found; modules imported stay."""
    if _FINDER in sys.meta_path:
        sys.meta_path.remove(_FINDER)
    for name in [name for name in sys.modules if name.partition(".")[0] == NAME]:
        if sys.modules[name].__name__.startswith(f"{HERE}."):
            del sys.modules[name]
