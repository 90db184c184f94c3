"""Arguments of kernels: lowering and kernel name the same class, so that no word of a record is meant by its place."""

import ast
import importlib
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import every_kernel
import pytest

import pyggml.kernels.cpu
from pyggml import jit
from pyggml.backend.cpu import CPUBackend, CPUDevice
from pyggml.graph import build_forward
from pyggml.kernels.cpu import step_args
from pyggml.lowering.cpu import Builder

FOLDER = Path(pyggml.kernels.cpu.__file__).parent
Used = set[tuple[jit.Spec, type[step_args.StepArgs]]]


def by_place(text: str) -> Iterator[str]:
    """Where a file names words of `ints` by their places: reads the field itself, or hands a step a bare tuple or list."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and node.value == "ints":
            yield f"line {node.lineno}: ints"
        if isinstance(node, ast.keyword) and node.arg == "args" and isinstance(node.value, ast.Tuple | ast.List):
            yield f"line {node.value.lineno}: {ast.unparse(node.value)}"


def test_no_file_names_an_argument_by_its_place() -> None:
    files = {f.name: [*by_place(f.read_text())] for f in FOLDER.rglob("*.py") if f.name != "step_args.py"}
    assert len(files) > 40
    assert {name: found for name, found in files.items() if found} == {}


@pytest.mark.parametrize("planted", ['x = record.field("ints", 2)', "builder.step(spec, node, (a,), args=(run, 1))"])
def test_a_planted_place_is_found(planted: str) -> None:
    text = (FOLDER / "copy.py").read_text()
    assert len([*by_place(f"{text}\n{planted}\n")]) == 1


@pytest.fixture(scope="module")
def used() -> Used:
    """Each kernel that every_kernel's graph is lowered to, those that are called by others included, and the class of the
    arguments that its step has."""
    found: Used = set()
    step = Builder.step

    def note(self: Builder, spec: jit.Spec, *operands: Any, **options: Any) -> None:
        found.update((s, type(options.get("args", ()))) for s in (spec, *options.get("calls", ())))
        step(self, spec, *operands, **options)

    nodes = [case.node for case in every_kernel.cases(CPUDevice()).values()]
    backend = CPUBackend(CPUDevice(), 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Builder, "step", note)
        backend._lower(build_forward(nodes), None)
    backend.close()
    assert len(found) > 200
    return found


def asked_for(spec: jit.Spec) -> set[type[step_args.StepArgs]]:
    """The classes of arguments that a kernel reads."""
    found: set[type[step_args.StepArgs]] = set()
    readers = step_args.readers
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_args, "readers", lambda of: found.add(of) or readers(of))
        getattr(importlib.import_module(spec.full_module), spec.factory)(*spec.args)
    return found


def differing(used: Used) -> list[str]:
    """Kernels that read arguments of another class than their steps have."""
    wrong = []
    for spec, given in used:
        asked = asked_for(spec)
        if asked - {given} or (not asked and given is not tuple and spec.signature == jit.STEP):
            wrong.append(f"{spec.label} reads {[c.__name__ for c in asked]}, its step has {given.__name__}")
    return wrong


def test_kernels_read_the_class_that_their_steps_have(used: Used) -> None:
    assert differing(used) == []
    modules = {spec.module for spec, given in used if given is not tuple}
    assert {
        "copy",
        "rows",
        "rope",
        "attention",
        "attention_tile",
        "matvec",
        "tile",
        "dequant_fallback",
        "experts",
    } <= modules


class OtherArgs(NamedTuple):
    length: int = 0


@pytest.mark.parametrize("module", ["copy", "rope", "matvec"])
def test_a_step_of_another_class_is_caught(used: Used, module: str) -> None:
    spec = next(spec for spec, given in used if spec.module == module and given is not tuple)
    (wrong,) = differing({(spec, OtherArgs)})
    assert "its step has OtherArgs" in wrong
    assert len(differing({(spec, tuple)})) == 1


class MixedArgs(NamedTuple):
    first: int
    share: float
    last: int


def test_floats_travel_as_their_bits() -> None:
    for share in (0.1, -2.5e300, 3):  # a whole number where a float is meant, too
        words = step_args.packed(MixedArgs(7, share, -1))
        assert words == (7, struct.unpack("<q", struct.pack("<d", share))[0], -1)
    assert step_args.packed(()) == () and step_args.packed(OtherArgs(5)) == (5,)
