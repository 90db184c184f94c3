"""Which texts a kernel is named by: its own and those it imports, no others. Must not know what kernels compute."""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyggml import sources
from pyggml.backend.cuda import compiled
from pyggml.jit import store

SUPPORT = Path(__file__).parent / "support"
COMMON = {"cpu": store.COMMON, "cuda": compiled._COMMON}


def digest(module: str) -> str:
    return sources.digest(f"pyggml.kernels.{module}", COMMON[module.partition(".")[0]])


@pytest.fixture
def changed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Call it with a file's path in the package: its text is another one from then on."""
    read, caches = Path.read_bytes, (sources.text, sources.files, sources.digest)

    def change(name: str) -> None:
        path = sources.ROOT / name
        assert path.exists()
        monkeypatch.setattr(Path, "read_bytes", lambda p: read(p) + b"#" * (p == path))
        for cache in caches:
            cache.cache_clear()

    yield change
    monkeypatch.undo()
    for cache in caches:
        cache.cache_clear()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        *(
            ("cpu.tile", n)
            for n in ("jit/compiling.py", "steps.py", "simd/dot.py", "kernels/cpu/tile.py", "kernels/cpu/record.py")
        ),
        ("cpu.tile", "quants/q4_1.py"),
        *(("cuda.matvec", f"kernels/cuda/{n}.py") for n in ("matvec", "unpack", "experts", "device/build", "spec")),
        ("cuda.rows", "quants/iq4_nl.py"),
    ],
)
def test_a_kernel_depends_on_its_sources(module: str, name: str, changed: Callable[[str], None]) -> None:
    before = digest(module)
    changed(name)
    assert digest(module) != before


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("cpu.tile", "kernels/cpu/glu.py"),
        ("cuda.matvec", "kernels/cuda/rope.py"),
        ("cuda.matvec", "quants/q4_0.py"),
        ("cuda.glu", "kernels/cuda/blocks.py"),
    ],
)
def test_a_kernel_depends_on_no_other_kernel(module: str, name: str, changed: Callable[[str], None]) -> None:
    before = digest(module)
    changed(name)
    assert digest(module) == before


def test_a_kernel_from_elsewhere_depends_on_its_file() -> None:
    found = store.source_files("word_kernels.planted")
    assert SUPPORT / "word_kernels/planted.py" in found and sources.ROOT / "simd/memory.py" in found


def imported(path: Path) -> Iterator[str]:
    """Names of the kernels' and quants' modules that a file imports, by the parser's account."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            assert not any(alias.name.startswith(("pyggml.kernels", "pyggml.quants")) for alias in node.names), path
        if isinstance(node, ast.ImportFrom):
            assert not node.level, path
            if node.module and node.module.startswith(("pyggml.kernels", "pyggml.quants")):
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    yield whole if sources.module_file(whole) else node.module


MODULES = [f"{place}.{p.stem}" for place in COMMON for p in sorted((sources.ROOT / "kernels" / place).glob("*.py"))]


@pytest.mark.parametrize("module", MODULES)
def test_no_import_is_missed(module: str) -> None:
    names = COMMON[module.partition(".")[0]]
    known = set(sources.files(f"pyggml.kernels.{module}", names))
    for file in known - set(sources.common(names)):
        for other in imported(file):
            assert sources.module_file(other) in known, f"{file}: {other}"


@pytest.mark.parametrize("place", COMMON)
def test_what_all_kernels_are_made_with_is_there(place: str) -> None:
    for path in sources.common(COMMON[place]):
        assert path.is_file()
