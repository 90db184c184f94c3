"""Numba's front end in less time: the same code comes out, in two thirds of the time on CPUs and two fifths for CUDA.

Owns what a process that compiles our kernels changes in Numba, and in numba-cuda's copy of it. Both are pinned to one
release in pyproject.toml. Nothing here may change what is compiled: tests/jit/test_quick_numba.py compares.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import gc
import importlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def no_collector() -> Iterator[None]:
    """Python's cyclic garbage collector pauses: it would look at a kernel's growing IR again and again."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


@functools.cache
def quicken(package: str) -> None:
    """Change `package`, "numba" or "numba.cuda", in this process. Once is enough."""
    core = f"{package}.core"
    ir, inlining = (importlib.import_module(f"{core}.{name}") for name in ("ir", "inline_closurecall"))
    _copy_less(ir)
    _inline_once(inlining.InlineWorker)
    _remember_operators()
    if package == "numba.cuda":
        _count_assignments(importlib.import_module("numba.cuda.lowering"))


def _copy_less(ir: Any) -> None:
    """A function that is inlined is copied block by block, and with each block all that its variables and places lead to:
    places in the source, which nobody changes, and the scope with every variable of the function."""

    def place(self: Any, memo: dict[int, Any]) -> Any:
        return self

    def scope(self: Any, memo: dict[int, Any]) -> Any:
        made = ir.Scope(self.parent, self.loc)
        made.localvars._con.update(self.localvars._con)
        made.redefined.update(self.redefined)
        made.var_redefinitions.update({name: set(names) for name, names in self.var_redefinitions.items()})
        memo[id(self)] = made
        return made

    ir.Loc.__deepcopy__ = place
    ir.Scope.__deepcopy__ = scope


def _inline_once(worker: Any) -> None:
    """The IR of a function of ours, whose globals and free variables stay as they are, is made once and not at each call:
    `inline_ir` copies it before it changes anything."""
    made: dict[Any, Any] = {}
    make = worker.run_untyped_passes

    def run_untyped_passes(self: Any, func: Any, enable_ssa: bool = False) -> Any:
        if enable_ssa or func.__module__.partition(".")[0] != "pyggml":
            return make(self, func, enable_ssa)
        self.flags.enable_ssa = False  # which `make` leaves behind
        if func not in made:
            made[func] = make(self, func)
        return made[func]

    worker.run_untyped_passes = run_untyped_passes


@functools.cache
def _remember_operators() -> None:
    """Which implementation of an operator takes plain numbers is found by trying all of them, NumPy's too: once for each
    combination of types."""
    functions = importlib.import_module("numba.core.types.functions")
    types = importlib.import_module("numba.core.types")
    plain = (types.Integer, types.Float, types.Boolean)
    find = functions.BaseFunction.get_call_type

    def get_call_type(self: Any, context: Any, args: Any, kws: Any) -> Any:
        if kws or not all(isinstance(arg, plain) for arg in args):
            return find(self, context, args, kws)
        found = self.__dict__.setdefault("_of_plain_numbers", {})
        if args not in found:
            found[args] = find(self, context, args, kws)
        return found[args]

    functions.BaseFunction.get_call_type = get_call_type


def _count_assignments(lowering: Any) -> None:
    """Variables that one block assigns once and no other block knows need no memory. Lower._find_singly_assigned_variable
    looks through a whole block for each variable; this counts once for each block."""

    def find(self: Any) -> None:
        self._singly_assigned_vars, self._blk_local_varmap = set(), {}
        if self.func_ir.func_id.is_generator:
            return
        places = lowering.compute_use_defs(self.func_ir.blocks)
        elsewhere = set().union(*places.usemap.values(), lowering.must_use_alloca(self.func_ir.blocks))
        blocks = collections.Counter(name for names in places.defmap.values() for name in names)
        for label, names in places.defmap.items():
            assignments = self.blocks[label].find_insts(lowering.ir.assign_types)
            times = collections.Counter(statement.target.name for statement in assignments)
            self._singly_assigned_vars |= {
                name for name in names if blocks[name] == 1 and times[name] == 1 and name not in elsewhere
            }

    lowering.Lower._find_singly_assigned_variable = find
