"""What an intrinsic of the CUDA vocabulary is: a name, a signature, and its meaning as a function in NVVM's LLVM IR.

A kernel's code calls intrinsics by name; the compiler appends their bodies, which are inlined. Whoever runs the same
code elsewhere gives the names another meaning. Owns the list of intrinsics.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba.cuda import cgutils, extending, types
from numba.cuda.typing import signature

PREFIX = "pyggml_"

_NUMBA = {"i32": types.int32, "i64": types.int64, "f32": types.float32, "void": types.void}
_LLVM = {"i32": ir.IntType(32), "i64": ir.IntType(64), "f32": ir.FloatType(), "void": ir.VoidType()}
TEXT = {"i32": "i32", "i64": "i64", "f32": "float", "void": "void"}


@dataclass(frozen=True)
class Intrinsic:
    """`body` is what stands between the braces of the function; its parameters are %a0, %a1 ...

    result   i32, i64, f32, void, or a type and a count, "i32*4": a tuple
    plain    the body is ordinary LLVM IR, which means the same on any processor
    needs    declarations that the body uses
    """

    name: str
    result: str
    args: tuple[str, ...]
    body: str
    plain: bool = False
    needs: tuple[str, ...] = ()

    @property
    def result_text(self) -> str:
        kind, count = split(self.result)
        return TEXT[kind] if count == 1 else "{" + ", ".join([TEXT[kind]] * count) + "}"

    @property
    def definition(self) -> str:
        parameters = ", ".join(f"{TEXT[kind]} %a{i}" for i, kind in enumerate(self.args))
        head = f"define linkonce_odr {self.result_text} @{PREFIX}{self.name}({parameters}) #0"
        return f"{head} {{\n{self.body.strip()}\n}}\n"


INTRINSICS: dict[str, Intrinsic] = {}


def split(result: str) -> tuple[str, int]:
    kind, _, count = result.partition("*")
    return kind, int(count or 1)


def intrinsic(
    name: str, result: str, args: tuple[str, ...] | list[str], body: str, *, plain: bool = False, needs: tuple[str, ...] = ()
) -> Any:  # fmt: skip
    """Add an intrinsic. What it gives is called in kernels; arguments are converted to the parameters' types."""
    assert name not in INTRINSICS, name
    made = INTRINSICS[name] = Intrinsic(name, result, tuple(args), body, plain, needs)
    return _numba_intrinsic(made)


def asm(text: str, constraints: str, result: str, args: str, *, pure: bool = False) -> str:
    """A call of one instruction of PTX: `args` as in a call, `result` an LLVM type. Without `pure` it stays where it is."""
    effect = "" if pure else " sideeffect"
    call = f'call {result} asm{effect} "{text}", "{constraints}"({args}) #1'
    if result == "void":
        return f"{call}\nret void"
    return f"%r = {call}\nret {result} %r"


def _numba_intrinsic(made: Intrinsic) -> Any:
    kind, count = split(made.result)
    result = _NUMBA[kind] if count == 1 else types.UniTuple(_NUMBA[kind], count)
    llvm_result = _LLVM[kind] if count == 1 else ir.LiteralStructType([_LLVM[kind]] * count)
    function_type = ir.FunctionType(llvm_result, [_LLVM[a] for a in made.args])
    typed = signature(result, *(_NUMBA[a] for a in made.args))

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        function = cgutils.get_or_insert_function(builder.module, function_type, PREFIX + made.name)
        value = builder.call(function, args)
        if count > 1:
            return context.make_tuple(builder, result, [builder.extract_value(value, i) for i in range(count)])
        return context.get_dummy_value() if kind == "void" else value

    names = ", ".join(f"a{i}" for i in range(len(made.args)))
    space: dict[str, Any] = {"answer": (typed, generate)}  # Numba wants to see every parameter by name
    exec(f"def {made.name}(context, {names}):\n    return answer", space)
    return extending.intrinsic(space[made.name])
