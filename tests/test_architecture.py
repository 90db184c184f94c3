"""Which package may import which, that no modules import each other in a circle, and which files are long. Reads source text
alone; must not import what it checks."""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {
    "pyggml": ROOT / "pyggml",
    "pyggml_rpc": ROOT / "rpc/pyggml_rpc",
    "pyggml_server": ROOT / "cli/pyggml_server",
    "pyggml_cli": ROOT / "cli/pyggml_cli",
}

# A unit may import units of layers above its own. pyggml's units are its files and subpackages; the three other packages
# are one unit each. A new unit gets a place in the highest layer that works.
LAYERS = (
    ("pyggml.errors", "pyggml.number_text", "pyggml.prefix", "pyggml.regular_file"),
    ("pyggml.cachedir", "pyggml.steps"),
    ("pyggml.default_model", "pyggml.grammar", "pyggml.sources", "pyggml.quick_numba", "pyggml.atomic_file"),
    ("pyggml.dtypes", "pyggml.jit", "pyggml.sampler", "pyggml.chat"),
    ("pyggml.tensor", "pyggml.simd", "pyggml.gguf"),
    ("pyggml.ops", "pyggml.graph", "pyggml.quants"),
    ("pyggml.alloc", "pyggml.kernels"),
    ("pyggml.lowering", "pyggml.tokenizer"),
    ("pyggml.backend", "pyggml.quantize"),
    ("pyggml.memory", "pyggml.inspection"),
    ("pyggml.model",),
    ("pyggml.runtime",),
    ("pyggml.api", "pyggml.perplexity"),
    ("pyggml.compat",),
    ("pyggml", "pyggml.__main__"),
    ("pyggml_rpc",),
    ("pyggml_server",),
    ("pyggml_cli",),
)
RANK = {unit: i for i, layer in enumerate(LAYERS) for unit in layer}

# Libraries that only some modules may import, themselves or what is below them.
ALLOWED_IMPORTERS = {
    "numba": ("pyggml.jit", "pyggml.simd", "pyggml.kernels.cuda.device", "pyggml.quick_numba"),
    "llvmlite": ("pyggml.jit", "pyggml.simd", "pyggml.kernels.cuda.device"),
    "cuda": ("pyggml.backend.cuda.driver", "pyggml.backend.cuda.toolkit", "pyggml.kernels.cuda.device"),
    "socket": (
        "pyggml_rpc.transport",
        "pyggml_rpc.link",
        "pyggml_rpc.unheard",
        "pyggml_server.listening",
        "pyggml_cli.interrupts",
    ),  # the latter: a pair through which a signal wakes it
    "argparse": ("pyggml_cli",),
    "starlette": ("pyggml_server", "pyggml_cli.server"),  # the latter: asks whether they are there
    "uvicorn": ("pyggml_server.serve", "pyggml_server.connections", "pyggml_cli.server"),
}

# Modules that must stay apart although their layers would allow it: the specification knows no kernel, kernels for
# one kind of device know none for another.
APART = (
    ("pyggml.backend.reference", "pyggml.kernels"),
    ("pyggml.backend.reference", "pyggml.jit"),
    ("pyggml.backend.reference", "pyggml.backend.cpu"),
    ("pyggml.kernels.cpu", "pyggml.kernels.cuda"),
    ("pyggml.kernels.cuda", "pyggml.kernels.cpu"),
)


def sources() -> dict[str, str]:
    """Dotted module name -> text, of every file of the four packages."""
    found = {}
    for package, folder in PACKAGES.items():
        for file in sorted(folder.rglob("*.py")):
            name = ".".join((package, *file.relative_to(folder).with_suffix("").parts))
            found[name.removesuffix(".__init__")] = file.read_text(encoding="utf-8")
    return found


def inside(module: str, place: str) -> bool:
    return module == place or module.startswith(place + ".")


def unit_of(module: str) -> str:
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "pyggml" else parts[0]


def imports(text: str, modules: dict[str, str], types: bool = False) -> Iterator[str]:
    """Dotted names of all imports, also those inside functions; those for type checkers alone only with `types`."""
    for module, name in parsed_imports(text, types):
        full = f"{module}.{name}" if module else name
        yield full if full in modules or not module else module


@functools.cache
def parsed_imports(text: str, types: bool) -> list[tuple[str, str]]:
    """("", a) of `import a`, (a, b) of `from a import b`."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if not types and isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            node.body = []
    found: list[tuple[str, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [("", alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import of {node.module}"
            found += [(str(node.module), alias.name) for alias in node.names]
    return found


def violations(modules: dict[str, str], of: str | None = None) -> list[str]:
    """What all modules, or one of them, do wrong."""
    found = []
    for module, text in modules.items() if of is None else [(of, modules[of])]:
        here = unit_of(module)
        if here not in RANK:
            found.append(f"{module}: {here} has no layer in tests/test_architecture.py")
            continue
        for name in imports(text, modules):
            top = name.split(".")[0]
            if top in ALLOWED_IMPORTERS and not any(inside(module, place) for place in ALLOWED_IMPORTERS[top]):
                found.append(f"{module} imports {top}; only {', '.join(ALLOWED_IMPORTERS[top])} may")
            if top not in PACKAGES:
                continue
            there = unit_of(name)
            if there != here and RANK.get(there, len(LAYERS)) >= RANK[here]:
                found.append(f"{module} imports {name}: {there} is not above {here}")
            for a, b in APART:
                if inside(module, a) and inside(name, b):
                    found.append(f"{module} imports {name}: {a} must not know {b}")
    return found


def circles(modules: dict[str, str]) -> list[set[str]]:
    """Modules that reach each other by imports of any kind: what is left when modules that import, or are imported by,
    none of those left are taken away again and again."""
    left = {
        m: {i for i in imports(text, modules, types=True) if i in modules and i != m} for m, text in modules.items()
    }
    while True:
        imported = set().union(*left.values()) if left else set()
        ends = {m for m, targets in left.items() if not targets or m not in imported}
        if not ends:
            break
        left = {m: targets - ends for m, targets in left.items() if m not in ends}
    found: list[set[str]] = []
    for module in left:
        reached = reachable(left, module)
        circle = {m for m in reached if module in reachable(left, m)}
        if circle and circle not in found:
            found.append(circle)
    return found


def reachable(arrows: dict[str, set[str]], start: str) -> set[str]:
    reached: set[str] = set()
    waiting = [start]
    while waiting:
        new = arrows[waiting.pop()] - reached
        reached |= new
        waiting += new
    return reached


def test_no_circles() -> None:
    assert circles(sources()) == []


@pytest.mark.parametrize(
    "planted",
    [
        {"pyggml.api.evaluation": "from pyggml.api.llama import Llama"},
        {"pyggml.runtime.sequence": "if TYPE_CHECKING:\n    from pyggml.runtime.generate import generate"},
        {"pyggml.runtime.stops": "def f():\n    from pyggml.runtime import generate"},
        {"pyggml_rpc.served": "if TYPE_CHECKING:\n    from pyggml_rpc.session import Session"},
        {"pyggml_rpc.client_state": "def f():\n    from pyggml_rpc.buffers import Buffers"},
    ],
)
def test_a_planted_circle_is_found(planted: dict[str, str]) -> None:
    modules = sources()
    for module, text in planted.items():
        modules[module] += f"\n{text}\n"
        assert any(module in circle for circle in circles(modules))


def test_imports_run_one_way() -> None:
    assert violations(sources()) == []


PLANTED = {
    "pyggml.tensor": "from pyggml import ops",
    "pyggml.ops": "import pyggml.backend.base",
    "pyggml.quants.q4_0": "def f():\n    from pyggml.kernels.cpu import matmul",
    "pyggml.kernels.cpu.matmul": "from pyggml.backend.host import HostBuffer",
    "pyggml.kernels.cpu.rope": "from numba import njit",
    "pyggml.backend.cpu": "import llvmlite.binding as llvm",
    "pyggml.backend.reference.copy": "from pyggml.jit import kernel",
    "pyggml.backend.scheduler": "from pyggml.model import model",
    "pyggml.api.llama": "import pyggml_rpc.backend",
    "pyggml.backend.cuda.plan": "from cuda.bindings import driver",
    "pyggml.kernels.cuda.norm": "from numba import cuda",
    "pyggml_rpc.session": "import socket",
    "pyggml_rpc.server": "from pyggml_cli import cli",
    "pyggml_rpc.backend": "from pyggml_server import engine",
    "pyggml_server.engine": "from pyggml_cli import flags",
    "pyggml_server.openai": "import uvicorn",
    "pyggml.model.arch.llama": "import argparse",
    "pyggml.pantry": "",
}


@pytest.mark.parametrize("module", PLANTED)
def test_a_planted_violation_is_found(module: str) -> None:
    modules = sources()
    modules[module] = modules.get(module, "") + "\n" + PLANTED[module] + "\n"
    new = violations(modules, module)
    assert len(new) == 1, new


def test_an_import_for_type_checkers_alone_is_no_violation() -> None:
    text = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pyggml.backend.base import Buffer\n"
    assert violations({"pyggml.tensor": text}) == []


def undocumented(files: dict[str, str]) -> list[str]:
    return [name for name, text in files.items() if text.strip() and ast.get_docstring(ast.parse(text)) is None]


def test_each_file_says_what_it_owns() -> None:
    """An empty __init__.py owns nothing."""
    files = sources()
    for folder in (ROOT / "tests", ROOT / "benchmarks"):
        files |= {str(f): f.read_text(encoding="utf-8") for f in folder.rglob("*.py")}
    assert len(files) > 50
    assert undocumented(files) == []
    assert undocumented({"x": "import os\n", "y": '"""Owns."""\n'}) == ["x"]


MANY_LINES = 450
LONG = {
    "tests/rpc/test_attacks.py": "the list of publicly known attacks, which is to be read as one",
    "tests/rpc/test_comm.py": "one pair of servers, and the wrong variants that its tests must catch",
    "tests/sampler/test_sampler_peer.py": "a wrong variant of each stage beside the comparison that must catch it",
}
"""Files of code with more lines, and why each is one."""


def long_files(lines: dict[str, int], reasons: dict[str, str]) -> list[str]:
    """What is wrong with the lengths of files."""
    wrong = [
        f"{f}: {n} lines, no reason for more than {MANY_LINES}"
        for f, n in lines.items()
        if n > MANY_LINES and f not in reasons
    ]
    return wrong + [f"{f}: has a reason to be long and is not" for f in reasons if lines.get(f, 0) <= MANY_LINES]


def test_long_files_have_a_reason() -> None:
    folders = [*PACKAGES.values(), ROOT / "tests", ROOT / "benchmarks"]
    files = [file for folder in folders for kind in ("py", "js", "css", "cpp") for file in folder.rglob(f"*.{kind}")]
    lines = {str(f.relative_to(ROOT)): f.read_text(encoding="utf-8").count("\n") for f in files}
    assert len(lines) > 50
    assert long_files(lines, LONG) == []
    assert len(long_files({"a": 451, "b": 450, "c": 451}, {"b": "", "c": ""})) == 2
