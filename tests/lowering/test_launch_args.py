"""Arguments of CUDA kernels: lowering and kernel name the same class, so that no word of a launch is meant by its place."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed: pip install '.[cuda]'")

import every_kernel
from cuda_recording import RecordingGPU, place
from op_cases import F16, F32, I32, Operands

import pyggml.kernels.cuda
from pyggml import ops
from pyggml.backend.cuda.device import CudaDevice
from pyggml.dtypes import GGMLType
from pyggml.graph import build_forward
from pyggml.kernels.cuda.launch_args import NOWHERE, AllExtents, Extents, Place, Rows, entry, fields, words
from pyggml.kernels.cuda.spec import Spec, f32, i32, i64, make
from pyggml.lowering.cuda import Builder
from pyggml.tensor import Tensor

FOLDER = Path(pyggml.kernels.cuda.__file__).parent
Used = set[tuple[Spec, type]]


def by_place(text: str) -> Iterator[str]:
    """Where a file hands a launch a bare tuple, or makes a kernel's class with words that are not named: what a group begins
    with is, the first argument."""
    tree = ast.parse(text)
    tuples = {
        name.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple)
        for name in node.targets
        if isinstance(name, ast.Name)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Attribute) and node.func.attr == "launch":
            given = [*node.args[3:4], *(k.value for k in node.keywords if k.arg == "args")]
            if any(isinstance(g, ast.Tuple | ast.List) or (isinstance(g, ast.Name) and g.id in tuples) for g in given):
                yield f"line {node.lineno}: {ast.unparse(given[0])}"
        if isinstance(node.func, ast.Name) and node.func.id.endswith("Args") and node.args[1:]:
            yield f"line {node.lineno}: {ast.unparse(node)}"


def test_no_file_names_an_argument_by_its_place() -> None:
    files = {f.name: [*by_place(f.read_text())] for f in FOLDER.glob("*.py")}
    assert len(files) > 25
    assert {name: found for name, found in files.items() if found} == {}


@pytest.mark.parametrize(
    "planted",
    [
        "builder.launch(Spec('a', 'b'), (1,), 32, (1, 2))",
        "words = (1, 2)\nbuilder.launch(Spec('a', 'b'), (1,), 32, words)",
        "builder.launch(spec, (1,), 32, args=[1])",
        "args = BinaryArgs(node.data, 3)",
    ],
)
def test_a_planted_place_is_found(planted: str) -> None:
    text = (FOLDER / "elementwise.py").read_text()
    assert len([*by_place(f"{text}\n{planted}\n")]) == 1


def fused(make: Operands) -> list[Tensor]:
    """Products of each kind, and attention on tensor cores, with narrow heads and wide ones."""
    q = make.leaf(F32, (64, 3, 4))
    found = [ops.flash_attn_ext(q, make.leaf(F16, (64, 40, 2)), make.leaf(F16, (64, 40, 2)), None, 1.0)]
    long = make.leaf(F32, (64, 40, 4))
    found.append(ops.flash_attn_ext(long, make.leaf(F16, (64, 40, 2)), make.leaf(F16, (64, 40, 2)), None, 1.0))
    wide = [make.leaf(F32, (256, 40, 4)), make.leaf(F16, (256, 40, 2)), make.leaf(F16, (256, 40, 2))]
    found.append(ops.flash_attn_ext(*wide, None, 1.0))
    for dtype in (F16, GGMLType.Q4_0, GGMLType.IQ2_XS):
        for m in (1, 40):
            w, x = make.leaf(dtype, (256, 8)), make.leaf(F32, (256, m))
            found.append(ops.add(ops.mul_mat(w, x), make.leaf(F32, (8,))))
            found.append(ops.swiglu(ops.mul_mat(w, x), ops.mul_mat(make.leaf(dtype, (256, 8)), x)))
    ids = make.leaf(I32, (2, 40), np.zeros(80))
    found.append(ops.mul_mat_id(make.leaf(GGMLType.Q4_0, (64, 8, 4)), make.leaf(F32, (64, 1, 40)), ids))
    found.append(ops.argsort(make.leaf(F32, (900,))))
    found.append(ops.mul(ops.rms_norm(make.leaf(F32, (64, 2)), 1e-5), make.leaf(F32, (64,))))
    positions = make.leaf(I32, (3,))
    found += [ops.rope(make.leaf(F32, (64, heads, 3)), positions, 64) for heads in (4, 2)]
    return found


@pytest.fixture(scope="module")
def used() -> Used:
    """Each kernel that the graphs of every_kernel and of `fused` are lowered to, and the class that it is launched with."""
    found: Used = set()
    launch = Builder.launch

    def note(self: Builder, spec: Spec, grid: Any, threads: int, args: Any, shared: int = 0) -> None:
        found.add((spec, type(args)))
        launch(self, spec, grid, threads, args, shared)

    device = CudaDevice(RecordingGPU())
    nodes = [case.node for case in every_kernel.cases(device).values()] + fused(Operands(np.random.default_rng(0)))
    place(device, *nodes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Builder, "launch", note)
        device.open().plan(build_forward(nodes))
    return found


def differing(used: Used) -> list[str]:
    """Kernels that have other parameters than their launches have words."""
    return [
        f"{spec.label} is launched with {given.__name__}, it asks for {asked.__name__}"
        for spec, given in used
        if (asked := make(spec).args) is not given  # type: ignore[attr-defined]
    ]


def test_kernels_ask_for_the_class_that_they_are_launched_with(used: Used) -> None:
    assert differing(used) == []
    files = {f.stem for f in FOLDER.glob("*.py") if "@entry" in f.read_text()}
    assert files == {spec.module for spec, _ in used}


class OtherArgs(NamedTuple):
    y: Place
    n: i32


@pytest.mark.parametrize("module", ["copy", "rope", "matvec"])
def test_a_launch_with_another_class_is_caught(used: Used, module: str) -> None:
    spec = next(spec for spec, _ in used if spec.module == module)
    (wrong,) = differing({(spec, OtherArgs)})
    assert "is launched with OtherArgs" in wrong


class InnerArgs(NamedTuple):
    scale: f32
    at: i64


class MixedArgs(NamedTuple):
    y: Place
    inner: InnerArgs
    b: Rows
    n: Extents
    m: AllExtents
    ids: i64


def test_groups_become_parameters_in_order() -> None:
    names = [
        "y",
        "y0",
        "y1",
        "y2",
        "y3",
        "scale",
        "at",
        "b",
        "b1",
        "b2",
        "b3",
        "n0",
        "n1",
        "n2",
        "m0",
        "m1",
        "m2",
        "m3",
        "ids",
    ]
    assert [name for name, _ in fields(MixedArgs)] == names
    kinds = dict(fields(MixedArgs))
    assert (kinds["y"], kinds["scale"], kinds["b3"], kinds["n2"], kinds["m3"], kinds["ids"]) == (
        "i64", "f32", "i64", "i32", "i32", "i64",
    )  # fmt: skip
    given = MixedArgs(
        Place(*range(5)), InnerArgs(0.5, 6), Rows(7, 8, 9, 10), Extents(11, 12, 13), AllExtents(14, 15, 16, 17), 18
    )
    assert words(given) == (0, 1, 2, 3, 4, 0.5, *range(6, 19))
    assert words(OtherArgs(NOWHERE, n=3)) == (0, 0, 0, 0, 0, 3)


def test_a_kernel_with_other_parameters_is_refused() -> None:
    def kernel(y, y0, y1, y2, n):
        pass

    with pytest.raises(AssertionError, match=r"has the parameters .*'y2', 'n'.*OtherArgs .*'y3', 'n'"):
        entry(OtherArgs)(kernel)
